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
)
"""Fields of transformers configs that hold the width of the hidden layers which demp cuts."""

HEADS = (("num_attention_heads", "head_dim"), ("num_heads", "d_kv"))
"""Fields for heads of attention, and for the channels of one."""
SHARED = "num_key_value_heads"


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
    dense = on_meta(own, own.config)
    for config in candidates(own, changed_widths(own, dense)):
        twin = on_meta(own, config)
        if outline(twin) == outline(own):
            twin.load_state_dict(own.state_dict(), assign=True)
            twin.tie_weights()
            if hasattr(own, "generation_config"):
                twin.generation_config = own.generation_config
            return twin, ""
    return None, f"no config of transformers describes this {name} as it is now: its folder loads with demp.load"


def outline(model: nn.Module) -> tuple[dict[str, torch.Size], list[type]]:
    """Shapes of a state, and the classes of all modules: a module that was put in by hand is in no config."""
    kinds = [getattr(type(m), "demp_plain", type(m)) for m in model.modules()]
    return {key: tensor.shape for key, tensor in model.state_dict().items()}, kinds


def changed_widths(own: nn.Module, dense: nn.Module) -> dict[int, set[int]]:
    """Size of every axis on the model's own config, where it is no longer so -> the sizes that it has now."""
    changes: dict[int, set[int]] = {}
    now = own.state_dict()
    for name, tensor in dense.state_dict().items():
        if name in now and now[name].dim() == tensor.dim():
            for was, size in zip(tensor.shape, now[name].shape, strict=True):
                if was != size:
                    changes.setdefault(was, set()).add(size)
    return changes


def candidates(own: Any, changes: dict[int, set[int]]) -> Iterator[Any]:
    """Configs that may describe the model: as it is, then every way to put the new widths into its width fields.

    A field that is None takes its width from another one, and may take any.
    """
    yield copy.deepcopy(own.config)
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
    for heads, widths in product(head_counts(own.config, changes), product(*choices.values())):
        config = copy.deepcopy(own.config)
        for name, value in {**heads, **dict(zip(choices, widths, strict=True))}.items():
            setattr(config, name, value)
        yield config


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
            found.append(left | ({SHARED: shared * left[name] // heads} if hasattr(config, SHARED) else {}))
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
    return loaded if own is model else type(model)(loaded)


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
