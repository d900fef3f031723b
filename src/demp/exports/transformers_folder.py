"""An ordinary transformers folder for a cut model whose layers all shrank alike: config.json says what is left."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from demp.exports.agreement import first_line
from demp.exports.ordinary_norms import EPS, fold_norms, rescaled
from demp.exports.program import muted

FILES = ("config.json", "generation_config.json", "model.safetensors")
WIDTHS = (
    "intermediate_size",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "d_ff",
    "n_inner",
    "hidden_dim",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
"""Fields of transformers configs that hold the width of the hidden layers which demp cuts."""

HEADS = (("num_attention_heads", "head_dim"), ("num_heads", "d_kv"))
"""Fields for heads of attention, and for the channels of one."""
SHARED = "num_key_value_heads"
STREAMS = (("hidden_size", "rms_norm_eps"), ("d_model", "layer_norm_epsilon"))
"""Fields for the embedding width, and for the eps of the norms that read it."""


def part_of(model: nn.Module) -> Any:
    """The transformers model: ``model`` itself, or what the trainer wrapped to return plain logits."""
    library: Any = sys.modules.get("transformers")
    if library is None:
        return None
    wrappers: Any = sys.modules.get("demp.train.models.libraries")
    wrapped = wrappers is not None and isinstance(model, wrappers.ImageLogits)
    inner: Any = model.model if wrapped else model
    return inner if isinstance(inner, library.PreTrainedModel) else None


def ordinary(model: nn.Module) -> tuple[nn.Module | None, str]:
    """The model on the config of its present widths, without demp in it; or None, and why there is none."""
    own = part_of(model)
    if own is None:
        return None, ""
    name = type(own).__name__
    if getattr(sys.modules["transformers"], name, None) is not type(own):
        return None, f"{name} is a class of its own: its folder loads with demp.load"
    if rescaled(own):
        own = with_ordinary_norms(own)
        if len(epsilons(own)) > 1:
            return (
                None,
                f"its norms need several eps, and a config of {name} has one: its folder loads with demp.load",
            )
    dense = on_meta(own, own.config)
    why = f"no config of transformers describes this {name} as it is now"
    refusals: list[str] = []
    for config in candidates(own, changed_widths(own, dense), with_lists(own, dense)):
        twin = attempted(own, config, refusals)
        if twin is None or outline(twin) != outline(own):
            continue
        why, refusals = refused(config), []
        if not why:
            twin.load_state_dict(own.state_dict(), assign=True)
            twin.tie_weights()
            if hasattr(own, "generation_config"):
                twin.generation_config = own.generation_config
            return twin, ""
    why += f" (one was tried and refused: {refusals[0]})" if refusals else ""
    return None, f"{why}: its folder loads with demp.load"


def attempted(own: nn.Module, config: Any, refusals: list[str]) -> Any:
    """The model on a config that was guessed; None where its constructor refuses that, and ``refusals`` gets why."""
    try:
        return on_meta(own, config)
    except Exception as error:  # constructors of models may raise anything
        refusals.append(first_line(error))
        return None


def refused(config: Any) -> str:
    """Why transformers would not write this config (Llama's width is a multiple of its heads); empty if it does."""
    try:
        getattr(config, "validate", lambda: None)()  # older versions ask nothing
    except Exception as error:  # the checks of a config class may raise anything
        return f"transformers refuses a config of these widths ({str(error).strip().splitlines()[-1].strip()})"
    return ""


def with_ordinary_norms(own: nn.Module) -> Any:
    """A copy in which the norms of a stream that lost channels say so by scale and eps, where they can."""
    twin = copy.deepcopy(own)
    fold_norms(twin)
    return twin


def outline(model: nn.Module) -> tuple[dict[str, torch.Size], list[type], list[Any]]:
    """Shapes of a state, classes of all modules (one that was put in by hand is in no config), and eps of the norms."""
    kinds = [getattr(type(m), "demp_plain", type(m)) for m in model.modules()]
    eps = [getattr(m, name) for m in model.modules() for name in EPS if hasattr(m, name)]
    return {key: tensor.shape for key, tensor in model.state_dict().items()}, kinds, eps


def with_lists(own: Any, dense: nn.Module) -> Any:
    """The model's config; where a field lists a width for every layer (Gemma3n), those that the layers have now."""
    config = copy.deepcopy(own.config)
    for name in WIDTHS:
        widths = getattr(config, name, None)
        if isinstance(widths, list):
            layers = [changed_widths(own, dense, f".layers.{i}.") for i in range(len(widths))]
            setattr(config, name, [min(now.get(was, {was})) for was, now in zip(widths, layers, strict=True)])
    return config


def changed_widths(own: nn.Module, dense: nn.Module, within: str = "") -> dict[int, set[int]]:
    """Size of every axis on the model's own config, where it is no longer so -> the sizes that it has now."""
    changes: dict[int, set[int]] = {}
    now = own.state_dict()
    for name, tensor in dense.state_dict().items():
        if within in name and name in now and now[name].dim() == tensor.dim():
            for was, size in zip(tensor.shape, now[name].shape, strict=True):
                if was != size:
                    changes.setdefault(was, set()).add(size)
    return changes


def candidates(own: Any, changes: dict[int, set[int]], start: Any) -> Iterator[Any]:
    """Configs that may describe the model: ``start``, then every way to put the new widths into its width fields.

    A field that is None takes its width from another one, and may take any.
    """
    yield copy.deepcopy(start)
    every = set().union(*changes.values())
    values = {name: getattr(own.config, name) for name in WIDTHS if hasattr(own.config, name)}
    fields = {
        name: every if value is None else changes.get(value, set())
        for name, value in values.items()
        if value is None or isinstance(value, int)
    }
    choices = {name: sorted(widths) for name, widths in fields.items() if widths}
    if any(len(widths) > len(choices) for widths in choices.values()):
        return  # more widths than fields: the layers differ
    for name in choices:  # a size that is a width and the channels of all heads may be still that of one of them
        choices[name] += [values[name]] if isinstance(values[name], int) else []
    streams, heads = embedding_widths(own, changes), head_counts(own.config, changes)
    for stream, left, widths in product(streams, heads, product(*choices.values())):
        config = copy.deepcopy(start)
        for name, value in {**stream, **left, **dict(zip(choices, widths, strict=True))}.items():
            if not is_computed(config, name):
                setattr(config, name, value)
        yield config


def is_computed(config: Any, name: str) -> bool:
    """Does the config work this field out of others, so that it cannot be set (Falcon's ``head_dim``)?"""
    field = getattr(type(config), name, None)
    return isinstance(field, property) and field.fset is None


def embedding_widths(own: Any, changes: dict[int, set[int]]) -> list[dict[str, Any]]:
    """Fields of a config for the embedding widths that may be left, with the channels of a head as they were."""
    config, found, values = own.config, [dict[str, Any]()], epsilons(own)
    for name, eps_name in STREAMS:
        width = getattr(config, name, None)
        if not isinstance(width, int) or not hasattr(config, eps_name) or len(values) != 1:
            continue
        fixed = {
            size_name: getattr(config, size_name, None) or width // getattr(config, heads)
            for heads, size_name in HEADS
            if hasattr(config, heads)
        }
        found += [{name: size, eps_name: min(values), **fixed} for size in sorted(changes.get(width, ()))]
    return found


def epsilons(model: nn.Module) -> set[Any]:
    """All values that eps has in norms of the model."""
    return {getattr(m, name) for m in model.modules() for name in EPS if hasattr(m, name)}


def head_counts(config: Any, changes: dict[int, set[int]]) -> list[dict[str, int]]:
    """Fields of a config for the heads that may be left, whose channels stay as many; the first changes none."""
    found: list[dict[str, int]] = [{}]
    for name, size_name in HEADS:
        heads = getattr(config, name, None)
        if not isinstance(heads, int):
            continue
        size = getattr(config, size_name, None) or config.hidden_size // heads
        shared = getattr(config, SHARED, None) or heads
        for width in sorted(changes.get(heads * size, ())):
            left = {name: width // size, size_name: size}
            found.append(left | ({SHARED: shared * left[name] // heads or 1} if hasattr(config, SHARED) else {}))
    return found


def on_meta(own: nn.Module, config: Any) -> Any:
    """The same class on another config, without memory."""
    with silent(), torch.device("meta"):
        return type(own)(config)


def write(twin: Any, folder: Path) -> None:
    """config.json and model.safetensors, as transformers writes them."""
    with silent():
        twin.save_pretrained(folder)


def read(model: nn.Module, folder: Path) -> nn.Module:
    """The folder, read back by transformers; in the trainer's wrapper if the model has one."""
    own: Any = part_of(model)
    with silent():
        loaded = type(own).from_pretrained(folder, local_files_only=True)
        if experts(loaded) != experts(own):
            loaded.set_experts_implementation(experts(own))
    return loaded if own is model else type(model)(loaded)


def experts(own: Any) -> Any:
    """How a mixture of experts is computed, part by part; no config.json says it, and not every kernel takes any width.

    None in versions of transformers that know one way.
    """
    return own.get_experts_implementation() if hasattr(own, "get_experts_implementation") else None


def loading_options(own: Any, folder: Path) -> str:
    """What `from_pretrained` has to be told, beside the folder, to compute experts as the model does, as Python code.

    Empty where it has to be told nothing.
    """
    with silent():
        usual = experts(on_meta(own, type(own.config).from_pretrained(folder, local_files_only=True)))
    wanted = experts(own)
    if usual == wanted:
        return ""
    value = wanted[""] if set(wanted.values()) == {wanted[""]} else wanted
    return f"experts_implementation={value!r}"


@contextmanager
def silent() -> Iterator[None]:
    """No progress bars and no advice from transformers."""
    logging: Any = sys.modules["transformers"].utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with muted():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
