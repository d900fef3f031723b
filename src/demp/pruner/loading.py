"""``demp.load_state_dict``: a model takes the widths of a state dict, and then its tensors."""

import gc
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from demp.artifact.widths import Widths, fit, raise_if_broken, recorded, traced, whole_name
from demp.errors import UsageError
from demp.graph.forward import first_names
from demp.parallel import forget_compiled_code, is_sharded_model, user_module
from demp.pruner import Pruner
from demp.surgery.beside import announce, beside
from demp.surgery.record import put_record, record_of
from demp.surgery.shrink import UndoLog

logger = logging.getLogger("demp")
PREFIXES = ("module.", "_orig_mod.")
"""What wrappers put before every name of a state dict."""
LOST = (
    "the state dict does not say which neurons it has: what model.state_dict() puts beside the tensors of a cut model "
    "is lost in a dict comprehension, in safetensors and in the state dict of an unpickled model (give that model "
    "itself). Load what torch.save(model.state_dict(), path) wrote, or use demp.save and demp.load"
)


@dataclass(frozen=True)
class LoadReport:
    """What `demp.load_state_dict` did to the model: names that did not match, and tensors that changed their widths."""

    missing_keys: tuple[str, ...]
    """Names of the model that the state dict lacks."""
    unexpected_keys: tuple[str, ...]
    """Names of the state dict that the model lacks."""
    resized: tuple[str, ...]
    """Names of tensors that took other widths."""
    notes: tuple[str, ...] = ()
    """State of optimizers that begins anew, one sentence each."""


def load_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any] | nn.Module, *, strict: bool = True, example_inputs: Any = None
) -> LoadReport:
    """Load a state dict of any widths: in place of ``model.load_state_dict(state_dict)``.

    The model may be the dense one that a script has just built, or one that was cut otherwise. Parameters stay the same
    objects and take the shapes of the file, and so do buffers, sizes that modules remember and residual sums.
    Optimizers that hold them follow: what they know of neurons that stay stays, and of neurons that return it is zero.

    A state dict of a cut model has the record of its cuts beside its tensors; ``torch.save`` and ``copy.deepcopy`` keep
    it. Of a model that was unpickled whole give the model itself. Where it is lost, and no residual sum adds two
    widths, ``example_inputs`` let demp read it from the widths: the dense model is traced, and its forward must run.

    Raises:
        UsageError: a tensor fits no widths of this model, the record is needed and lost, a pruner is at work on the
            model, or names differ. Nothing has changed then.
    """
    model = user_module(model)
    state_dict = unprefixed(of_model(state_dict) if isinstance(state_dict, nn.Module) else state_dict, model)
    state_dict = with_ties(state_dict, model)
    raise_if_at_work(model)
    found = widths_of(model, state_dict, example_inputs)
    raise_if_other_widths(model, state_dict, found)
    parts = [(model.get_submodule(one.path), one) for one in found]
    records = [(part, record_of(part)) for part, _ in parts]
    optimizers, undo_log = optimizers_of(model), UndoLog()
    kept = values_of(model) if strict and state_dict.keys() != model.state_dict(keep_vars=True).keys() else {}
    try:
        notes = [note for part, widths in parts for note in fit(part, widths, optimizers, undo_log)]
        if any(widths.unknown for widths in found):
            raise_if_broken(model, example_inputs)
        keys = model.load_state_dict(state_dict, strict=strict)
    except Exception as error:
        undo_log.roll_back()
        with torch.no_grad():
            for tensor, value in kept.values():
                tensor.copy_(value)
        for part, record in records:
            put_record(part, record)
        if isinstance(error, RuntimeError):
            raise UsageError(f"{error}") from None  # torch's list of names
        raise
    resized = tuple(name for widths in found for name in widths.resized)
    if resized:
        forget_compiled_code()
        logger.info("%d tensors took the widths of the state dict", len(resized))
    return LoadReport(tuple(keys.missing_keys), tuple(keys.unexpected_keys), resized, tuple(notes))


def of_model(model: nn.Module) -> Mapping[str, Any]:
    """The state dict of a model that may have been unpickled, with the records of its cuts."""
    for part in model.modules():
        announce(part, record_of(part) is not None)
    return model.state_dict()


def values_of(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Each tensor with a copy of its values; torch fills those that fit before it says which names do not."""
    tensors = first_names(model)[0]
    return {n: (t, t.detach().clone()) for n, t in tensors.items() if not is_lazy(t) and not t.is_meta}


def unprefixed(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Without the prefix that a wrapper around the saved model has put before all names."""
    mine = model.state_dict(keep_vars=True)
    for prefix in PREFIXES:
        if state_dict and all(name.startswith(prefix) for name in state_dict) and not state_dict.keys() & mine.keys():
            inner = OrderedDict((name.removeprefix(prefix), value) for name, value in state_dict.items())
            metadata = getattr(state_dict, "_metadata", None) or {}
            own = {"": metadata.get(prefix[:-1], {})}
            own |= {path.removeprefix(prefix): entry for path, entry in metadata.items() if path.startswith(prefix)}
            inner._metadata = own  # type: ignore[attr-defined]
            return unprefixed(inner, model)
    return state_dict


def with_ties(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """With all names of tensors that the model holds under several, of which a file may have one (safetensors)."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    more = {}
    for tied in names.values():
        given = next((name for name in tied if name in state_dict), None)
        if given is not None:
            more |= {name: state_dict[given] for name in tied if name not in state_dict}
    if not more:
        return state_dict
    whole = OrderedDict({**state_dict, **more})
    whole._metadata = getattr(state_dict, "_metadata", None) or {}  # type: ignore[attr-defined]
    return whole


def raise_if_at_work(model: nn.Module) -> None:
    """A model whose widths a pruner or a sharding keeps account of.

    Raises:
        UsageError: the model is sharded, or a pruner is at work on it.
    """
    if is_sharded_model(model):
        raise UsageError("fully_shard keeps this model in pieces; load the state dict before you shard it")
    mine = {id(p) for p in model.parameters()}
    for one in [o for o in gc.get_objects() if type(o) is Pruner and o.at_work]:
        if any(id(p) in mine for p in one.model.parameters()):
            raise UsageError(
                f"a pruner is at work on this {type(model).__name__} (step {one.step} of {one.total_steps}) and keeps "
                "account of its neurons: give it the state that was saved with these weights "
                "(pruner.load_state_dict(state), then model.load_state_dict(weights)), or end it with finish() or "
                "detach() first"
            )


def widths_of(model: nn.Module, state_dict: Mapping[str, Any], example_inputs: Any) -> list[Widths]:
    """The widths of every part that was cut, in the file or in the model.

    Raises:
        UsageError: they are not known, or no cut of this model leads there.
    """
    records = beside(state_dict)
    cut = {path for path, part in model.named_modules() if record_of(part) is not None}
    modules = dict(model.named_modules())
    if strange := sorted(records.keys() - modules.keys()):
        raise UsageError(f"the state dict is of a model with a part {strange[0]!r}, which this one lacks")
    if records or cut:
        return [recorded(modules[path], path, records.get(path)) for path in sorted({*records, *cut})]
    tensors = {n: t for n, t in first_names(model)[0].items() if not is_lazy(t)}
    shapes = {n: tuple(v.shape) for n, v in state_dict.items() if isinstance(v, Tensor) and n in tensors}
    other = {name: shape for name, shape in shapes.items() if shape != tuple(tensors[name].shape)}
    for name, shape in other.items():
        mine = tuple(tensors[name].shape)
        if len(mine) != len(shape) or any(theirs > own for theirs, own in zip(shape, mine, strict=True)):
            raise UsageError(f"{name} is {shape} in the state dict and {mine} in this model: no cut leads there")
        if example_inputs is None:
            raise UsageError(f"{name} is {shape} in the state dict and {mine} here; {LOST}, or pass example_inputs")
    return [traced(model, example_inputs, other, LOST)] if other else []


def raise_if_other_widths(model: nn.Module, state_dict: Mapping[str, Any], found: list[Widths]) -> None:
    """Every tensor of the file must have the shape that its record gives it, or else the model's own.

    Raises:
        UsageError: one has another.
    """
    expected = {n: tuple(t.shape) for n, t in first_names(model)[0].items() if not is_lazy(t)}
    expected |= {whole_name(one.path, name): shape for one in found for name, shape in one.shapes.items()}
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and tuple(value.shape) != expected.get(name, tuple(value.shape)):
            why = "" if any(one.record is not None for one in found) else f". {LOST}"
            raise UsageError(f"{name} is {tuple(value.shape)} in the state dict, and should be {expected[name]}{why}")


def optimizers_of(model: nn.Module) -> tuple[Optimizer, ...]:
    """Optimizers that Python holds, and that remember something of the model's parameters."""
    mine = {id(p) for p in model.parameters()}
    found = [o for o in gc.get_objects() if isinstance(type(o), type) and issubclass(type(o), Optimizer)]
    holding = (o for o in found if getattr(o, "state", None))
    return tuple(o for o in holding if any(id(p) in mine for group in o.param_groups for p in group["params"]))
