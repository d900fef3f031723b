"""Calls of the user's code that the tracer follows as a whole, not by the operations that they consist of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from demp.graph.call_rules import along_neurons, note_whole
from demp.graph.calls import Seat
from demp.graph.carrying_out import resized
from demp.graph.elements import Labels
from demp.graph.grids import Grid
from demp.graph.heads import latest_heads
from demp.graph.multihead import PROJECTIONS, averaged, by_head, given, unfit
from demp.graph.norm_rules import norm
from demp.graph.operations import Call, UserCall
from demp.graph.recording import CallSeen
from demp.graph.recurrent_rules import packed, recurrent
from demp.graph.shape_rules import view
from demp.graph.shuffle_rules import REGROUPS, regroup, settled
from demp.graph.stream_norms import NAMES
from demp.graph.zeros import lift

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer


unwatched = torch._C._DisableTorchDispatch
"""A context for what the tracer itself computes: no operation of the model."""


def follow_call(tracer: Tracer, seat: Seat, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call of the user's code: as a whole, or remembered while its operations run."""
    if tracer.paused:
        return func(*args, **kwargs)
    call = UserCall(seat, args[1], args[2], args[4]) if func is resized else UserCall(seat, func, args, None)
    own = args[3] if func is resized else kwargs
    if call.kind in NAMES:
        with unwatched():
            lift(tracer, tracer.tensors((args, kwargs)))
            labels = norm(tracer, call, (args[0], *call.args[1:]), own)
        if labels is not None:
            out = unseen(tracer, func, args, kwargs)
            tracer.learn(seat, tracer.tensors((args, kwargs)), [(out, labels)])
            return out
    elif call.kind == "heads":
        with unwatched():
            lift(tracer, tracer.tensors((args, kwargs)))
            offered = is_offered(tracer, call, own)
        if offered:
            return multihead(tracer, call, (args[0], *call.args[1:]), own)
    elif may_follow(tracer, call, args[0]):
        out = unseen(tracer, func, args, kwargs)
        with unwatched():
            found = known(tracer, call, func, args, out)
        if found is not None:
            if not isinstance(found, Grid):
                tracer.learn(seat, tracer.tensors(args), found)
            return out
    with unwatched():
        note_whole(tracer, call)
    before, tracer.call_at = tracer.call_at, call
    try:
        return func(*args, **kwargs)
    finally:
        tracer.call_at = before


def multihead(tracer: Tracer, call: UserCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention of torch's own module, by the operations of what carries it out for the heads that are left.

    The weights of attention that it returns are means over heads, or lie along them: whoever uses them keeps the heads.
    """
    before, tracer.call_at = tracer.call_at, call
    try:
        out, shares = by_head(args, kwargs)
    finally:
        tracer.call_at = before
    shares = unseen(tracer, averaged, (shares, args, kwargs), {})
    axis, source, why = latest_heads(tracer), args[0], f"attention for a fixed number of heads (at {tracer.where()})"
    read = tracer.labels(source).axes[-1]
    followed = axis or (
        read if tracer.recording.offer.streams else None
    )  # of one head alone the channels that it reads
    if followed is None:
        return out, shares
    own: Any = {"inner": (source.shape[-1],), "out": read, "otherwise": why, "before": call.plan}
    tracer.recording.calls.append(CallSeen(call.seat, source.dim() - 1, source.dim(), followed, **own))
    if shares is not None and axis is not None:
        tracer.learn(call.seat, [], [(shares, replace(tracer.bare(shares), chosen=axis))])
    return out, shares


def is_offered(tracer: Tracer, call: UserCall, kwargs: dict[str, Any]) -> bool:
    """Can attention of torch's own module be carried out for fewer heads? If not, its heads stay."""
    options = given(call.args, kwargs)
    why = (
        "the fused inference of nn.TransformerEncoderLayer"
        if call.seat[0].rpartition(".")[0] in tracer.fused
        else unfit(options)
    )
    if why:
        for name in PROJECTIONS:
            if isinstance(options[name], Tensor):
                tracer.freeze_axis(tracer.labels(options[name]).axes[0], f"heads of attention with {why}")
    return not why


def may_follow(tracer: Tracer, call: UserCall, source: Tensor) -> bool:
    """Is it a kind of call that may be followed as a whole, on neurons?"""
    known_of = tracer.raw(source)
    if isinstance(known_of, Labels) and (known_of.lifted or known_of.chosen is not None):
        return False
    if call.kind in ("conv", "shuffle"):
        return any(axis is not None for axis in tracer.labels(source).axes[1:])
    if call.kind in REGROUPS:
        raw = tracer.raw(source)
        if raw is None or isinstance(raw, Grid):
            return raw is not None
        return call.kind == "view" and any(axis is not None for axis in raw.axes)
    return call.kind in ("recurrent", "packed")


def unseen(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run it without following its operations."""
    tracer.paused = True
    try:
        return func(*args, **kwargs)
    finally:
        tracer.paused = False


def known(
    tracer: Tracer, call: UserCall, func: Any, args: tuple[Any, ...], out: Any
) -> list[tuple[Tensor, Labels]] | Grid | None:
    """Labels of what a call made; None if it must be followed operation by operation after all."""
    if call.kind == "recurrent":
        return recurrent(tracer, func, args, out)
    if call.kind == "packed":
        return packed(tracer, args, out)
    if call.kind in REGROUPS:
        if not isinstance(out, Tensor):
            return None
        step = Call("view", torch.ops.aten.view.default, (args[0],), {}, out)
        found = regroup(tracer, call, out, settled(tracer, view, step, call, packed=True))
        if isinstance(found, Grid):
            tracer.note(out, found)
            return found
    else:
        found = along_neurons(tracer, call, out.shape[-1] == args[0].shape[-1])
    return None if found is None else [(out, found)]
