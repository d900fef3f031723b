"""What ``torch.rms_norm`` does to neurons on the axis that it runs over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from demp.graph.call_rules import UserCall, note_read, note_stream
from demp.graph.elements import Axis, Labels
from demp.graph.recording import CallSeen
from demp.graph.rms_norms import named

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer

MIXES = "rms_norm over the neuron axis mixes neurons"


def rms_norm(tracer: Tracer, call: UserCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Labels | None:
    """Labels of what ``torch.rms_norm`` makes of a stream; None if it must be followed by its operations.

    Its channels may then not go: where streams are not asked for, or it runs over more than one axis.
    """
    given, source = named(args, kwargs), args[0]
    labels, over = tracer.labels(source), len(given["normalized_shape"])
    axis, why = labels.axes[-1], f"{MIXES} (at {tracer.where()})"
    offered = tracer.recording.offer.streams and over == 1 and not labels.constant
    if axis is not None and (offered or call.plan is not None):
        seen = CallSeen(call.seat, source.dim() - 1, source.dim(), axis, otherwise=why, before=call.plan)
        tracer.recording.calls.append(seen)
    if axis is None or not offered:
        for each in labels.axes[source.dim() - over :]:
            tracer.freeze_axis(each, MIXES)
        return None
    note_stream(tracer, axis)
    note_read(tracer, call.seat, source.dim() - 1, axis)
    weight = given["weight"]
    if weight is not None:
        own = tracer.labels(weight).axes[-1]
        if own is None:
            tracer.freeze_axis(axis, "rms_norm with a computed scale")
        else:
            tracer.elements.union(axis.ids, own.ids)
    return Labels((*labels.axes[:-1], Axis(axis.ids, axis.sites, axis.born)))
