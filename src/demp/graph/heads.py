"""Heads of attention while a forward is followed: which modules attend with which, and what pairs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demp.graph.elements import Axis, Labels, unique_in_order
from demp.graph.operations import Call

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer


def note_heads(tracer: Tracer, axis: Axis, channels: int) -> None:
    """The module that runs now attends with these heads, which may be repeated over a batch."""
    seen = tracer.recording.heads.setdefault(running(tracer), [])
    seen.append((unique_in_order(axis.ids), channels))


def latest_heads(tracer: Tracer) -> Axis | None:
    """The heads with which the module that runs now attended last."""
    seen = tracer.recording.heads.get(running(tracer))
    return None if seen is None else Axis(seen[-1][0], torch.zeros_like(seen[-1][0]))


def running(tracer: Tracer) -> str:
    """Path of the module that runs now."""
    return tracer.modules[-1] if tracer.modules else ""


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


def shared(tracer: Tracer, heads: Axis | None, at: int, *others: Labels) -> bool:
    """Do these heads have no partners on axis ``at`` of the others, which have one head for all of them?

    Whether copies of it follow when some of them go, a rehearsal has to show. The channels of that one head stay.
    """
    if heads is None or any(labels.axes[at] is not None for labels in others):
        return False
    tracer.recording.sharing.add(running(tracer))
    for labels in others:
        for axis in labels.axes:
            tracer.freeze_axis(axis, SHARED)
    return True


def paired(tracer: Tracer, a: Axis | None, b: Axis | None, reason: str) -> Axis | None:
    """One axis out of two that go on only together; None, and neurons of one alone stay."""
    if a is not None and b is not None and len(a.ids) == len(b.ids):
        return tracer.unite(a, b)
    for axis in (a, b):
        tracer.freeze_axis(axis, reason)
    return None
