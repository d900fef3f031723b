"""Axis rules for indices: rows of tokens are picked and put back (experts), while neurons keep their places."""

from typing import Any

import torch

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.rules import rule
from demp.graph.trace_state import TraceState

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


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(trace: TraceState, call: Call) -> Labels:
    """Rows are added to or written into others; along the other axes both sides meet."""
    base, source = call.args[0], call.arg(3, "source")
    dim = call.arg(1, "dim") % max(base.dim(), 1)
    for tensor in (base, source):
        if tensor.dim():
            trace.freeze_axis(trace.labels(tensor).axes[dim], f"{call.name} {PICKS}")
    return trace.meet([base, source], base.shape, call.name, skip=dim)
