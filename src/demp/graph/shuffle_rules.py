"""Channel shuffles by views: channels become a grid, the grid is transposed, and becomes channels again.

``x.view(B, g, C // g, H, W).transpose(1, 2).reshape(B, C, H, W)`` puts channels into another order and nothing else. A
cut plans its two ends: the first view sees every channel at its dense place (zeros where one is removed), and of what
the last one makes the removed ones are dropped. Anything else that happens to the grid is followed as a view is.
"""

from typing import Any

import torch
from torch import Tensor

from demp.graph.elements import Labels
from demp.graph.grids import Grid, Settle
from demp.graph.operations import Call, UserCall
from demp.graph.recording import CallSeen
from demp.graph.trace_state import TraceState

MOVES = frozenset({"transpose", "permute", "clone", "contiguous", "alias", "movedim"})
"""ATen operations that keep a grid one."""
REGROUPS = ("view", "flatten")
"""Kinds of calls that make a grid, or channels of one."""


PICKS = frozenset({"select", "unbind", "split", "chunk", "unsafe_split", "unsafe_chunk"})
"""ATen operations that take parts of an axis."""
PARTS = (2, 3)
"""So long is an axis of a grid whose entries may be parts of one layer: a gate and what it gates; query, key, value."""


def regroup(trace: TraceState, call: UserCall, out: Tensor, settle: Settle) -> Grid | Labels | None:
    """What a view makes that begins or ends a shuffle; None if it does neither."""
    source = call.args[0]
    raw = trace.raw(source)
    if isinstance(raw, Grid):
        return merged(trace, call, raw, source, out)
    labels = trace.labels(source)
    for dim, axis in enumerate(labels.axes):
        more = out.dim() - source.dim()
        lengths = tuple(out.shape[dim : dim + more + 1])
        around = (*source.shape[:dim], *lengths, *source.shape[dim + 1 :])
        if axis is None or more < 1 or 1 in lengths or out.shape != around or labels.source or not axis_alone(labels):
            continue
        plan = call.plan
        if plan is not None and not plan.grid:
            return None
        order = (
            torch.arange(source.shape[dim], device="cpu") if plan is None else torch.tensor(plan.expand, device="cpu")
        )
        if len(order) != torch.Size(lengths).numel():
            continue
        seen = CallSeen(call.seat, dim, source.dim(), axis, otherwise=why(trace), before=plan, grid=lengths)
        others = {d + (more if d > dim else 0): a for d, a in enumerate(labels.axes) if d != dim}
        return Grid(axis, order.view(lengths), tuple(range(dim, dim + more + 1)), others, seen, settle)
    return None


def axis_alone(labels: Labels) -> bool:
    """Does the tensor carry one axis of neurons?"""
    return sum(axis is not None for axis in labels.axes) == 1


def why(trace: TraceState) -> str:
    """Why neurons stay where the shuffle cannot be planned."""
    return f"a channel shuffle made of views puts the neuron axis in another order (at {trace.where()})"


def merged(trace: TraceState, call: UserCall, grid: Grid, source: Tensor, out: Tensor) -> Labels | None:
    """Channels again: the axes of the grid, wherever they lie now, become one; None if others do."""
    dims = sorted(grid.dims)
    first, last = dims[0], dims[-1]
    flat = grid.order.permute([grid.dims.index(d) for d in dims]).flatten()
    kept = flat if call.plan is None else flat[torch.tensor(call.plan.select, dtype=torch.long, device="cpu")]
    shape = (*source.shape[:first], len(kept), *source.shape[last + 1 :])
    same = grid.first.seat[0] == call.seat[0] and dims == list(range(first, last + 1)) and out.shape == shape
    if not same or (call.plan is None) != (grid.first.before is None):
        return None
    made = grid.axis.take(kept)
    lengths = tuple(source.shape[d] for d in dims)
    seen = CallSeen(
        call.seat, first, source.dim(), made, out=made, otherwise=why(trace), before=call.plan, grid=lengths
    )
    trace.recording.calls += [grid.first, seen]
    axes = {d if d < first else d - (last - first): axis for d, axis in grid.others.items()} | {first: made}
    return Labels(tuple(axes[d] for d in range(out.dim())))


def taken_apart(call: Call, grid: Grid) -> int | None:
    """The axis of a grid whose entries an operation takes apart; None if it does not.

    Of two axes it is the first, of three (parts, heads and channels, in any order) any.
    """
    if call.name not in PICKS or len(grid.dims) not in (2, 3):
        return None
    at = 1 if call.name in ("select", "unbind") else 2
    dim = call.arg(at, "dim", 0) % call.args[0].dim()
    axis = grid.dims.index(dim) if dim in grid.dims else -1
    possible = axis == 0 or (axis > 0 and len(grid.dims) == 3)
    return axis if possible and grid.order.shape[axis] in PARTS else None


def moved(call: Call, grid: Grid, settle: Settle) -> Grid | None:
    """The grid after an operation that moves axes; None for any other."""
    if call.name not in MOVES or not isinstance(call.out, Tensor):
        return None
    where = torch.arange(call.out.dim(), device="cpu")
    if call.name in ("transpose", "permute", "movedim"):
        line = torch.empty(tuple(2 + d for d in range(call.out.dim())), device="meta")
        target = call.op(line, *call.args[1:], **call.kwargs)
        where = torch.tensor([size - 2 for size in target.shape], device="cpu")
    new = {int(old): at for at, old in enumerate(where.tolist())}
    others = {new[d]: axis for d, axis in grid.others.items()}
    return Grid(grid.axis, grid.order, tuple(new[d] for d in grid.dims), others, grid.first, settle)


def settled(trace: TraceState, rule: Any, call: Any, at: UserCall | None, *, told: bool = False) -> Settle:
    """Labels by the ordinary rule, as if the call ran now; ``told``: it asks which axis is taken apart."""

    def run(*, parts: int | None = None) -> Labels:
        before, trace.call_at = trace.call_at, at
        try:
            trace.settle(call.args[0], parts=parts)
            return rule(trace, call, **({"parts": parts} if told else {})) or trace.bare(call.out)
        finally:
            trace.call_at = before

    return run
