"""What a cut model remembers of its dense self: enough to save it, to load it and to count honestly."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from demp.graph import GraphState
from demp.graph.forward import as_inputs
from demp.graph.order import is_whole
from demp.surgery.beside import RECORD, announce


@dataclass(frozen=True)
class Record:
    """Provenance of a cut model, JSON-ready but for the tensors in ``kept``."""

    dense_shapes: dict[str, tuple[int, ...]]
    kept: dict[tuple[str, int], Tensor]
    """(tensor, axis) -> indices that stay, in dense numbering, in the order in which they lie."""
    dense_neurons: int
    neurons: int
    dense_flops: int
    paper_flops: int
    """Forward FLOPs by the paper's convention: dense FLOPs scaled by live outputs only."""
    flops: int
    """Forward FLOPs at present, on the same inputs as ``dense_flops`` and ``paper_flops``."""
    inputs: dict[str, Any] | None
    """The example inputs, described (``describe_inputs``)."""
    paper_by_operation: tuple[float, ...] = ()
    """``paper_flops`` per contraction: what is left of each composes over several traces."""
    dense_counts: dict[str, int] = field(default_factory=dict)
    """Of sizes that modules remember and no shape shows (``groups``), those of the dense model: "path|attribute"."""


def record_of(model: nn.Module) -> Record | None:
    """What the model remembers, if it was cut."""
    there = getattr(model, RECORD, None)
    if there is None or isinstance(there, dict):
        return None if there is None else record_from_plain(there)
    missing = {entry.name for entry in fields(there)} - vars(there).keys()
    return Record(**vars(there)) if missing else there  # a pickle of version 0.1 has the record itself


def remember(model: nn.Module, state: GraphState, example_inputs: Any, base: Record | None) -> None:
    """Write the record of a cut to ``state``. ``base`` is what the model remembered when its graph was traced."""
    kept = dict(base.kept) if base is not None else {}
    graph, dense = state.graph, state.graph.dense
    for slot in graph.slots:
        keep, key = state.kept(slot.classes), (slot.tensor, slot.axis)
        if key in kept:
            kept[key] = kept[key][keep]
        elif not is_whole(keep, len(slot.classes)):
            kept[key] = keep
    flops, paper = dense.flops(), paper_costs(state, base)
    dense_counts = {f"{path}|{name}": len(classes) for (path, name), classes in graph.attributes.items()}
    scale = 1.0 if base is None else base.flops / max(flops, 1)
    record = Record(
        dense_shapes=graph.shapes if base is None else base.dense_shapes,
        kept=kept,
        dense_neurons=dense.neurons if base is None else base.dense_neurons,
        neurons=state.neurons,
        dense_flops=flops if base is None else base.dense_flops,
        paper_flops=round(sum(paper)),
        flops=round(state.flops() * scale),
        inputs=describe_inputs(example_inputs),
        paper_by_operation=tuple(paper),
        dense_counts=dense_counts | ({} if base is None else base.dense_counts),
    )
    put_record(model, record)


def described_inputs(model: nn.Module) -> dict[str, Any] | None:
    """The inputs that a cut model remembers, described."""
    record = record_of(model)
    return None if record is None else record.inputs


def remember_inputs(model: nn.Module, described: dict[str, Any]) -> None:
    """Those of the cuts themselves, where cuts were replayed on others."""
    record = record_of(model)
    if record is not None:
        put_record(model, replace(record, inputs=described))


def paper_costs(state: GraphState, base: Record | None) -> list[float]:
    """FLOPs of each contraction by the paper's convention: its dense ones times the share of outputs that is left."""
    whole, left = state.graph.dense.flops_by_operation(), state.flops_by_operation(paper=True)
    if base is None:
        return left
    earlier = base.paper_by_operation
    if len(earlier) != len(left):  # the forward took another path than at the cut before: only totals compare
        earlier = [base.paper_flops * each / max(sum(whole), 1) for each in whole]
    return [e * now / max(was, 1) for e, now, was in zip(earlier, left, whole, strict=True)]


def describe_inputs(example_inputs: Any) -> dict[str, Any] | None:
    """Example inputs as JSON: tensors by shape and dtype, plain values as they are; None if that cannot be done."""

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"value": value}
        raise TypeError(type(value).__name__)

    args, kwargs = as_inputs(example_inputs)
    try:
        return {"args": [describe(v) for v in args], "kwargs": {k: describe(v) for k, v in kwargs.items()}}
    except TypeError:
        return None


def make_inputs(description: dict[str, Any], *, seed: int, batch: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the described shapes, drawn from a seed; each has at most ``batch`` examples, if that is given."""
    generator = torch.Generator().manual_seed(seed)

    def make(entry: dict[str, Any]) -> Any:
        if "shape" not in entry:
            return entry["value"]
        shape, dtype = list(entry["shape"]), getattr(torch, entry["dtype"])
        if shape and batch is not None:
            shape[0] = min(shape[0], batch)
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
        return torch.randint(0, 2, shape, generator=generator, device="cpu").to(dtype)

    return tuple(make(e) for e in description["args"]), {k: make(e) for k, e in description["kwargs"].items()}


def record_to_plain(record: Record | None) -> dict[str, Any] | None:
    """A record as values that can be written as JSON; None of None."""
    if record is None:
        return None
    plain = {k: v for k, v in vars(record).items() if k != "kept"}
    return {**plain, "kept": {f"{name}|{axis}": keep.tolist() for (name, axis), keep in record.kept.items()}}


def record_from_plain(plain: dict[str, Any]) -> Record:
    """The record that `record_to_plain` has written."""
    kept = {}
    for key, indices in plain["kept"].items():
        name, _, axis = key.rpartition("|")
        kept[name, int(axis)] = torch.tensor(indices, dtype=torch.long, device="cpu")
    shapes = {name: tuple(shape) for name, shape in plain["dense_shapes"].items()}
    paper = tuple(plain.get("paper_by_operation", ()))
    return Record(**{**plain, "kept": kept, "dense_shapes": shapes, "paper_by_operation": paper})


def put_record(model: nn.Module, record: Record | None) -> None:
    """Put a record, or none, in place of the present one; past ``__setattr__``, which may refuse unknown names.

    It is left as plain data, so that a pickle of the model loads where demp is not installed, and stands beside the
    tensors of the model's state dicts.
    """
    if record is not None:
        vars(model)[RECORD] = record_to_plain(record)
    else:
        vars(model).pop(RECORD, None)
    announce(model, record is not None)
