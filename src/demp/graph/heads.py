"""Heads of attention while a forward is followed: which modules attend with which, and what pairs them."""

import torch
from torch import Tensor

from demp.graph.elements import Axis, Labels, unique_in_order
from demp.graph.operations import Call
from demp.graph.trace_state import TraceState


def note_heads(trace: TraceState, axis: Axis, channels: int) -> None:
    """The module that runs now attends with these heads, which may be repeated over a batch."""
    seen = trace.recording.heads.setdefault(trace.running(), [])
    seen.append((unique_in_order(axis.ids), channels))


def latest_heads(trace: TraceState) -> Axis | None:
    """The heads with which the module that runs now attended last."""
    seen = trace.recording.heads.get(trace.running())
    return None if seen is None else Axis(seen[-1][0], torch.zeros_like(seen[-1][0]))


SHARED = "channels of the one key or value that all heads share"


MOVES = frozenset((
    "expand", "repeat", "view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "contiguous", "transpose",
    "permute", "unsqueeze", "squeeze", "_to_copy", "mul", "div",
))  # fmt: skip
"""What leaves copies of one head alike: to move them, or to multiply them by one number."""


def repeats_one(call: Call, source: Labels) -> bool:
    """Does the operation make copies of a single head, on the first axis behind that of the batch which is not 1?"""
    if call.name not in MOVES or not isinstance(call.out, Tensor):
        return False
    if source.copies:
        return all(not isinstance(other, Tensor) or other.numel() == 1 for other in call.args[1:])
    before, after = call.args[0].shape, call.out.shape
    if call.name not in ("expand", "repeat") or len(before) != len(after):
        return False
    at = next((dim for dim in range(1, len(after)) if after[dim] != 1), 0)
    return 0 < at < len(after) - 2 and before[at] == 1


def shared(trace: TraceState, heads: Axis | None, at: int, *others: Labels) -> bool:
    """Do these heads have no partners on axis ``at`` of the others, which have one head for all of them?

    Whether copies of it follow when some of them go, a rehearsal has to show. The channels of that one head stay.
    """
    if heads is None or any(labels.axes[at] is not None for labels in others):
        return False
    trace.recording.sharing.add(trace.running())
    for labels in others:
        for axis in labels.axes:
            trace.freeze_axis(axis, SHARED)
    return True


def paired(trace: TraceState, a: Axis | None, b: Axis | None, reason: str) -> Axis | None:
    """One axis out of two that go on only together; None, and neurons of one alone stay."""
    if a is not None and b is not None and len(a.ids) == len(b.ids):
        return trace.unite(a, b)
    for axis in (a, b):
        trace.freeze_axis(axis, reason)
    return None
