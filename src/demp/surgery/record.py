"""What a cut model remembers of its dense self: enough to save it, to load it and to count honestly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from demp.graph import NeuronGraph
from demp.graph.tracer import as_inputs

ATTRIBUTE = "demp_record"


@dataclass(frozen=True)
class Record:
    """Provenance of a cut model, JSON-ready but for the tensors in ``kept``."""

    dense_shapes: dict[str, tuple[int, ...]]
    kept: dict[tuple[str, int], Tensor]
    """(tensor, axis) -> indices that stay, in dense numbering."""
    dense_neurons: int
    neurons: int
    dense_flops: int
    paper_flops: int
    """Forward FLOPs by the paper's convention: dense FLOPs scaled by live outputs only."""
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and dtype of the example inputs."""


def record_of(model: nn.Module) -> Record | None:
    """What the model remembers, if it was cut."""
    return getattr(model, ATTRIBUTE, None)


def remember(model: nn.Module, graph: NeuronGraph, after: Tensor, example_inputs: Any, base: Record | None) -> None:
    """Write the record of a cut. ``base`` is what the model remembered when ``graph`` was traced."""
    kept = dict(base.kept) if base is not None else {}
    for slot in graph.slots:
        keep, key = slot.keep(after), (slot.tensor, slot.axis)
        if key in kept:
            kept[key] = kept[key][keep]
        elif len(keep) < len(slot.classes):
            kept[key] = keep
    flops, paper = graph.flops(graph.nothing_gone()), graph.flops(after, paper=True)
    record = Record(
        dense_shapes=graph.shapes if base is None else base.dense_shapes,
        kept=kept,
        dense_neurons=graph.neurons() if base is None else base.dense_neurons,
        neurons=graph.neurons(after),
        dense_flops=flops if base is None else base.dense_flops,
        paper_flops=paper if base is None else round(base.paper_flops * paper / max(flops, 1)),
        inputs=input_specs(example_inputs),
    )
    setattr(model, ATTRIBUTE, record)


def input_specs(example_inputs: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shape and dtype of every tensor among the inputs."""
    leaves = tree_leaves(as_inputs(example_inputs))
    return tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in leaves if isinstance(t, Tensor))


def forget(model: nn.Module, old: Record | None) -> None:
    """Put an earlier record back."""
    if old is not None:
        setattr(model, ATTRIBUTE, old)
    elif hasattr(model, ATTRIBUTE):
        delattr(model, ATTRIBUTE)


def narrowed_shapes(shapes: Mapping[str, tuple[int, ...]], kept: Mapping[tuple[str, int], Tensor]) -> dict[str, tuple[int, ...]]:
    """Dense shapes with the kept counts put in."""
    new = {name: list(shape) for name, shape in shapes.items()}
    for (name, axis), keep in kept.items():
        new[name][axis] = len(keep)
    return {name: tuple(shape) for name, shape in new.items()}


def dtype_of(name: str) -> torch.dtype:
    """A dtype by its name."""
    return getattr(torch, name)
