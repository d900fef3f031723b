"""Axis rules for indices: rows of tokens are picked and put back (experts), while neurons keep their places."""

from typing import Any

import torch

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.rules import rule, unknown
from demp.graph.trace_state import TraceState
from demp.graph.zeros import note_lifted

PICKS = "picks neurons by index"
GROUPED_MM = (
    "grouped_mm takes rows of whole 16 bytes alone, so that one neuron cannot go (in transformers: "
    "set_experts_implementation('eager') or 'batched_mm')"
)


@rule("index")
def index(trace: TraceState, call: Call) -> Any:
    """Indexed axes give way to those of the indices: in their place if they are neighbours, else in front."""
    source, indices = call.args[0], list(call.args[1])
    labels = trace.labels(source)
    left: list[Axis | None] = []
    taken: list[int] = []
    dim = ranks = 0
    for one in indices + [None] * source.dim():
        if dim >= source.dim():
            break
        width = 1
        if one is None:
            left.append(labels.axes[dim])
        else:
            mask = one.dtype in (torch.bool, torch.uint8)
            width, ranks = (one.dim() if mask else 1), max(ranks, 1 if mask else one.dim())
            for at in range(dim, dim + width):
                trace.freeze_axis(labels.axes[at], f"index {PICKS}")
            taken.append(len(left))
        dim += width
    at = taken[0] if taken and len(set(taken)) == 1 else 0
    whole = labels.source if len(indices) == 1 and source.dim() > 2 else None  # of each token the weights of its expert
    return Labels((*left[:at], *[None] * ranks, *left[at:]), whole, labels.constant)


@rule("_grouped_mm")
def grouped_mm(trace: TraceState, call: Call) -> None:
    """One product per expert: its kernels take no matrix of any width."""
    for tensor in trace.tensors((call.args, call.kwargs)):
        trace.freeze_tensor(tensor, GROUPED_MM)


@rule("index_select")
def index_select(trace: TraceState, call: Call) -> Labels:
    """Return the labels after ``index_select``; neurons on the picked axis must stay."""
    labels = trace.labels(call.args[0])
    axes = list(labels.axes)
    if axes:
        dim = call.arg(1, "dim") % len(axes)
        trace.freeze_axis(axes[dim], f"index_select {PICKS}")
        axes[dim] = None
    return Labels(tuple(axes), constant=labels.constant)


@rule("index_put", "index_put_")
def index_put(trace: TraceState, call: Call) -> Labels | None:
    """Values are written or added at indices of the first axes; along the others both sides meet."""
    base, indices, values = call.args[0], list(call.args[1]), call.args[2]
    masks = (torch.bool, torch.uint8)
    if trace.recording.offer.bare or not indices or any(one is None for one in indices):
        return unknown(trace, call)
    rest = base.dim() - sum(one.dim() if one.dtype in masks else 1 for one in indices)
    for tensor in (base, values):
        for axis in trace.labels(tensor).axes[: max(tensor.dim() - rest, 0)]:
            trace.freeze_axis(axis, f"{call.name} {PICKS}")
    met = trace.meet([base, values], base.shape[base.dim() - rest :], call.name)
    return Labels((*[None] * (base.dim() - rest), *met.axes), constant=met.constant)


@rule("segment_reduce")
def segment_reduce(trace: TraceState, call: Call) -> Labels | None:
    """Rows that follow one another are reduced to one (nodes of each graph of a batch); other axes stay apart."""
    lengths = call.kwargs.get("lengths")
    if call.kwargs.get("axis", 0) != 0 or lengths is None or lengths.dim() != 1:
        return unknown(trace, call)
    first, *others = trace.labels(call.args[0]).axes
    trace.freeze_axis(first, "segment_reduce over the neuron axis mixes neurons")
    note_lifted(trace, others, call.name)
    return Labels((None, *others))


@rule("index_reduce", "index_reduce_")
def index_reduce(trace: TraceState, call: Call) -> Labels:
    """Rows are reduced into others, each neuron by itself."""
    labels = index_add(trace, call)
    note_lifted(trace, labels.axes, call.name)
    return labels


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(trace: TraceState, call: Call) -> Labels:
    """Rows are added to or written into others; along the other axes both sides meet."""
    base, source = call.args[0], call.arg(3, "source")
    dim = call.arg(1, "dim") % max(base.dim(), 1)
    for tensor in (base, source):
        if tensor.dim():
            trace.freeze_axis(trace.labels(tensor).axes[dim], f"{call.name} {PICKS}")
    return trace.meet([base, source], base.shape, call.name, skip=dim)
