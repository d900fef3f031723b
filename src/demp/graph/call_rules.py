"""What calls of the user's code do to neurons beyond their ATen operations: read them, or depend on their number."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demp.graph.calls import INDEXING, CallPlan, CallSeat, entries_of, entry_of
from demp.graph.elements import Axis, Elements, Labels
from demp.graph.operations import UserCall
from demp.graph.recording import CallSeen, ReadSeen, Recording, StreamSeen
from demp.graph.signs import memory
from demp.graph.trace_state import TraceState
from demp.graph.view_calls import view_sizes
from demp.graph.zeros import is_bare

NEUTRAL = frozenset({"sum", "norm", "linalg_vector_norm", "mean"})
"""Reductions that a zero does not change; of a mean, once its divisor is the dense number."""
NORMS = frozenset({"norm", "linalg_vector_norm"})
"""Those that take the squares themselves."""
LARGEST = frozenset({"amax", "max"})
"""Reductions that a zero does not change among numbers that are not negative."""
UNEQUAL = "cuts the neuron axis into parts that could shrink unequally"


def reads_neutrally(trace: TraceState, name: str, source: Tensor, dims: list[int], labels: Labels) -> bool:
    """Is a reduction over one neuron axis a consumer, for which a dead neuron does nothing?"""
    call = trace.call_at
    carried = [d for d in dims if labels.axes[d] is not None]
    if call is None or call.kind not in ("sum", "mean") or not call.on(source) or len(carried) != 1:
        return False
    if name not in NEUTRAL and not (name in LARGEST and labels.nonnegative and memory(source) not in trace.written):
        return False
    if name == "mean" and call.kind != "mean":
        return False
    measured = trace.recording.offer.streams and not labels.constant and (bool(labels.squares_of) or name in NORMS)
    axis = (labels.squares_of if measured and labels.squares_of else labels.axes)[carried[0]]
    assert axis is not None
    if measured:
        note_stream(trace, axis)
    note_read(trace, call.seat, carried[0], axis)
    if name == "mean":
        why = f"mean over the neuron axis mixes neurons (at {trace.where()})"
        trace.recording.calls.append(
            CallSeen(call.seat, carried[0], source.dim(), axis, otherwise=why, before=call.plan)
        )
    return True


def note_stream(trace: TraceState, axis: Axis | None) -> None:
    """A norm runs over channels that no activation has touched: they may be those of a stream between norms."""
    if trace.recording.offer.streams and axis is not None and is_bare(axis):
        trace.recording.streams.append(StreamSeen(trace.running(), axis))


def note_read(trace: TraceState, seat: CallSeat, dim: int, axis: Axis) -> None:
    """A call of the user's code reads these neurons."""
    trace.read(ReadSeen(":".join(map(str, seat)), 0, 0, dim, -1, axis, seat))


def plans_parts(
    trace: TraceState, name: str, source: Tensor, dim: int, axis: Axis, parts: list[tuple[int, int]]
) -> bool:
    """Can parts of a neuron axis be taken as a cut plans them? Then nothing binds their neurons."""
    call = trace.call_at
    if call is None or call.kind not in ("split", "slice") or not call.on(source):
        return False
    earlier = next((seen for seen in trace.recording.calls if seen.seat == call.seat), None)
    if earlier is not None and name == "slice" and call.kind == "split" and earlier.parts[-1][1] == parts[0][0]:
        trace.recording.calls.remove(earlier)  # tensor_split takes one slice after the other
        trace.recording.calls.append(replace(earlier, parts=(*earlier.parts, *parts), binds=0))
        return True
    if earlier is not None:
        return False  # one index that cuts two neuron axes
    if call.func in INDEXING and entry_of(entries_of(call.args[1]), dim, source.dim()) is None:
        return False
    whole, size = source.shape[dim], parts[0][1] - parts[0][0]
    binds = whole // size if size and whole % size == 0 else 0
    why = f"{name} {UNEQUAL} (at {trace.where()})"
    seen = CallSeen(call.seat, dim, source.dim(), axis, tuple(parts), binds=binds, otherwise=why, before=call.plan)
    trace.recording.calls.append(seen)
    return True


def note_whole(trace: TraceState, call: UserCall) -> None:
    """A slice that takes all that is left since a cut: torch makes no operation of it."""
    plan = call.plan
    if call.kind != "slice" or plan is None or plan.sizes != (0, plan.width):
        return
    axis = trace.labels(call.args[0]).axes[plan.axis]
    if axis is not None:
        seen = CallSeen(call.seat, plan.axis, plan.ndim, axis, ((0, plan.width),), otherwise=UNEQUAL, before=plan)
        trace.recording.calls.append(seen)


class Landing(NamedTuple):
    """What a view makes of a neuron axis."""

    out: Axis
    dim: int
    """Axis of the source."""
    at: int
    """Axis of what comes out."""
    inner: tuple[int, ...] | None
    """Lengths of the axes behind it, where the view splits the axis."""
    block: tuple[int, ...]
    """See `CallPlan`."""


def note_view(trace: TraceState, source: Tensor, axis: Axis, landing: Landing) -> bool:
    """A view whose new size along one axis counts neurons: if the forward has the number written into it, a cut can.

    Where the view splits the axis, False if it could not be checked that it does so after a cut.
    """
    call, (out, dim, out_dim, inner, block) = trace.call_at, landing
    if call is not None and call.kind == "heads":
        return True
    if call is None or call.kind != "view" or view_sizes(call.func, call.args) is None:
        return inner is None
    if not call.on(source) and (inner is not None or not is_copied(trace, call, source, dim, axis)):
        return inner is None
    earlier = next((seen for seen in trace.recording.calls if seen.seat == call.seat), None)
    if earlier is not None:  # of two axes with neurons the plan is for the one that changes
        if out.ids is axis.ids or earlier.out is None or earlier.out.ids is not earlier.source.ids:
            return inner is None
        trace.recording.calls.remove(earlier)
    why = "a view splits or mixes the neuron axis" if inner is not None else ""
    own: Any = {"needed": False, "otherwise": why, "before": call.plan, "block": block}
    seen = CallSeen(call.seat, dim, source.dim(), axis, (), out, out_dim, inner or (), **own)
    trace.recording.calls.append(seen)
    return True


def is_copied(trace: TraceState, call: UserCall, source: Tensor, dim: int, axis: Axis) -> bool:
    """Is the source a copy of the first argument in another memory layout, as ``reshape`` makes it?"""
    first = call.args[0] if call.args else None
    if not isinstance(first, Tensor) or first.shape != source.shape:
        return False
    return trace.labels(first).axes[dim] is axis


def along_neurons(trace: TraceState, call: UserCall, same: bool) -> Labels | None:
    """Labels of what a call makes that runs along the neuron axis (ECA, a channel shuffle), if a cut can plan it.

    It sees every neuron at its place, removed ones as zeros, and of what it makes the removed ones are dropped.
    ``same``: it makes as many as it sees.
    """
    source = call.args[0]
    labels = trace.labels(source)
    width = len(call.plan.expand) if call.plan is not None else source.shape[2 if call.kind == "conv" else 1]
    if call.kind == "conv" and source.dim() == 3 and labels.axes[2] is not None and labels.axes[1] is None and same:
        weight, axis = call.args[1], labels.axes[2]
        why = f"conv1d runs over the neuron axis (at {trace.where()})"
        note_read(trace, call.seat, 2, axis)
        trace.freeze_tensor(weight, "convolves along the neuron axis")
        kept = axis.take(kept_of(call.plan, torch.arange(width, device="cpu")))
        made = Axis(kept.ids, torch.zeros_like(kept.sites), trace.tick())
        seen = CallSeen(call.seat, 2, 3, axis, otherwise=why, before=call.plan)
        trace.recording.calls.append(seen)
        return Labels((labels.axes[0], None, made))
    if call.kind == "shuffle" and len(call.args) == 2 and labels.axes[1] is not None:
        axis, groups = labels.axes[1], call.args[1]
        why = f"channel_shuffle mixes the neuron axis (at {trace.where()})"
        made = axis.take(kept_of(call.plan, torch.arange(width, device="cpu").view(groups, -1).t().flatten()))
        seen = CallSeen(call.seat, 1, source.dim(), axis, out=made, otherwise=why, before=call.plan)
        trace.recording.calls.append(seen)
        return Labels((labels.axes[0], made, *labels.axes[2:]))
    return None


def kept_of(plan: CallPlan | None, order: Tensor) -> Tensor:
    """Which position of what is there each position of the result is, where a call puts all neurons in this order."""
    if plan is None:
        return order
    return torch.tensor(plan.expand, device="cpu")[order[torch.tensor(plan.select, device="cpu")]]


def bind_calls(recording: Recording, owners: set[str] | None) -> None:
    """Calls of modules other than ``owners`` (None: of no module) cannot be planned: their neurons stay together."""
    kept = []
    for seen in recording.calls:
        if (owners is not None and seen.seat[0] in owners) or seen.before is not None:
            kept.append(seen)
        else:
            bind(recording.elements, seen)
    recording.calls[:] = kept


def bind(elements: Elements, seen: CallSeen) -> None:
    """Without a plan: equal parts must turn out to be the same neurons, and other calls that need one keep theirs."""
    if seen.binds:
        elements.must_balance(seen.source.ids, seen.binds, seen.otherwise)
    elif seen.otherwise:
        elements.freeze(seen.source.ids, seen.otherwise)
