"""Sums and calls of the user's code that a trace follows as a whole, or remembers while their operations run."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from demp.graph.call_rules import along_neurons, note_whole
from demp.graph.calls import CallSeat
from demp.graph.carrying_out import resized
from demp.graph.elements import Labels
from demp.graph.grids import Grid
from demp.graph.heads import latest_heads
from demp.graph.join_rules import planned
from demp.graph.multihead import PROJECTIONS, averaged, by_head, given, unfit
from demp.graph.norm_rules import norm
from demp.graph.operations import Call, UserCall
from demp.graph.recording import CallSeen
from demp.graph.recurrent_rules import cell, packed, recurrent
from demp.graph.shape_rules import view
from demp.graph.shuffle_rules import REGROUPS, regroup, settled
from demp.graph.space_rules import kept_but
from demp.graph.stream_norms import NAMES
from demp.graph.sums import join
from demp.graph.trace_state import TraceState
from demp.graph.zeros import lift

unwatched = torch._C._DisableTorchDispatch
"""A context for what rules compute: no operation of the model."""


def follow_sum(trace: TraceState, seat: tuple[str, int], func: Any, args: tuple[Any, ...]) -> Tensor:
    """Run a sum of the user's code, remembered while its operation runs; one planned by a cut is one step."""
    if func is not join:
        trace.sum_at = (*seat, func)
        try:
            return func(*args)
        finally:
            trace.sum_at = None
    with unwatched():
        lift(trace, args[:2])
        labels = planned(trace, seat, args[:2], args[2])
    out = unseen(trace, join, args, {})
    trace.note(out, labels)
    trace.frames.operation(seat[0], "add", [trace.labels(side) for side in args[:2]], [labels])
    return out


def follow_call(trace: TraceState, seat: CallSeat, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call of the user's code: as a whole, or remembered while its operations run."""
    if trace.paused:
        return func(*args, **kwargs)
    call = UserCall(seat, args[1], args[2], args[4]) if func is resized else UserCall(seat, func, args, None)
    own = args[3] if func is resized else kwargs
    if call.kind in NAMES:
        with unwatched():
            lift(trace, trace.tensors((args, kwargs)))
            labels = norm(trace, call, (args[0], *call.args[1:]), own)
        if labels is not None:
            out = unseen(trace, func, args, kwargs)
            trace.learn(seat, trace.tensors((args, kwargs)), [(out, labels)])
            return out
    elif call.kind == "heads":
        with unwatched():
            lift(trace, trace.tensors((args, kwargs)))
            offered = is_offered(trace, call, own)
        if offered:
            return multihead(trace, call, (args[0], *call.args[1:]), own)
    elif (call.kind != "pad" or is_circular(args, kwargs)) and may_follow(trace, call, args[0]):
        out = unseen(trace, func, args, kwargs)
        with unwatched():
            found = known(trace, call, func, args, out)
        if found is not None:
            if not isinstance(found, Grid):
                trace.learn(seat, trace.tensors(args), found)
            return out
    with unwatched():
        if call.kind == "cell":
            cell(trace, func, args)
        note_whole(trace, call)
    before, trace.call_at = trace.call_at, call
    try:
        return func(*args, **kwargs)
    finally:
        trace.call_at = before


def multihead(trace: TraceState, call: UserCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention of torch's own module, by the operations of what carries it out for the heads that are left.

    The weights of attention that it returns are means over heads, or lie along them: what uses them keeps the heads.
    """
    before, trace.call_at = trace.call_at, call
    try:
        out, shares = by_head(args, kwargs)
    finally:
        trace.call_at = before
    shares = unseen(trace, averaged, (shares, args, kwargs), {})
    axis, source, why = latest_heads(trace), args[0], f"attention for a fixed number of heads (at {trace.where()})"
    read = trace.labels(source).axes[-1]
    followed = axis or (read if trace.recording.offer.streams else None)  # of one head alone the channels that it reads
    if followed is None:
        return out, shares
    own: Any = {"inner": (source.shape[-1],), "out": read, "otherwise": why, "before": call.plan}
    trace.recording.calls.append(CallSeen(call.seat, source.dim() - 1, source.dim(), followed, **own))
    if shares is not None and axis is not None:
        trace.learn(call.seat, [], [(shares, replace(trace.bare(shares), chosen=axis))])
    return out, shares


def is_offered(trace: TraceState, call: UserCall, kwargs: dict[str, Any]) -> bool:
    """Can attention of torch's own module be carried out for fewer heads? If not, its heads stay."""
    options = given(call.args, kwargs)
    why = (
        "the fused inference of nn.TransformerEncoderLayer"
        if call.seat[0].rpartition(".")[0] in trace.fused
        else unfit(options)
    )
    if why:
        for name in PROJECTIONS:
            if isinstance(options[name], Tensor):
                trace.freeze_axis(trace.labels(options[name]).axes[0], f"heads of attention with {why}")
    return not why


def may_follow(trace: TraceState, call: UserCall, source: Tensor) -> bool:
    """Is it a kind of call that may be followed as a whole, on neurons?"""
    known_of = trace.raw(source)
    if isinstance(known_of, Labels) and (known_of.lifted or known_of.chosen is not None):
        return False
    if call.kind in ("conv", "shuffle", "pad"):
        return any(axis is not None for axis in trace.labels(source).axes[call.kind != "pad" :])
    if call.kind in REGROUPS:
        raw = trace.raw(source)
        if raw is None or isinstance(raw, Grid):
            return raw is not None
        return call.kind == "view" and any(axis is not None for axis in raw.axes)
    return call.kind in ("recurrent", "packed")


def is_circular(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does a padding go on at one end with what lies at the other? torch copies the parts into empty memory."""
    return (args[2] if len(args) > 2 else kwargs.get("mode")) == "circular"


def unseen(trace: TraceState, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run it without following its operations."""
    trace.paused = True
    try:
        return func(*args, **kwargs)
    finally:
        trace.paused = False


def known(
    trace: TraceState, call: UserCall, func: Any, args: tuple[Any, ...], out: Any
) -> list[tuple[Tensor, Labels]] | Grid | None:
    """Labels of what a call made; None if it must be followed operation by operation after all."""
    if call.kind == "recurrent":
        return recurrent(trace, func, args, out)
    if call.kind == "packed":
        return packed(trace, args, out)
    if call.kind == "pad":
        step = Call("circular padding", torch.ops.aten.pad.default, args, {}, out)
        return [(out, kept_but(trace, step, list(range(2, out.dim()))))]
    if call.kind in REGROUPS:
        if not isinstance(out, Tensor):
            return None
        step = Call("view", torch.ops.aten.view.default, (args[0],), {}, out)
        found = regroup(trace, call, out, settled(trace, view, step, call, told=True))
        if isinstance(found, Grid):
            trace.note(out, found)
            return found
    else:
        found = along_neurons(trace, call, out.shape[-1] == args[0].shape[-1])
    return None if found is None else [(out, found)]
