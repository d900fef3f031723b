"""What norms do to neurons on the axis that they run over: ``torch.rms_norm`` and ``torch.layer_norm``."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from demp.graph.call_rules import note_read, note_stream
from demp.graph.elements import Axis, Labels
from demp.graph.join_rules import sites_of
from demp.graph.operations import UserCall
from demp.graph.parts import HEADS
from demp.graph.recording import CallSeen
from demp.graph.stream_norms import named
from demp.graph.trace_state import TraceState


def norm(trace: TraceState, call: UserCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Labels | None:
    """Labels of what a norm makes of a stream; None if it must be followed by its operations.

    Its channels may then not go: where streams are not asked for, it runs over more than one axis, or makes other
    numbers of zeros whatever its parameters are.
    """
    given, source = named(call.kind, args, kwargs), args[0]
    name = "layer_norm" if call.kind == "layer_norm" else "rms_norm"
    labels, over = trace.labels(source), len(given["normalized_shape"])
    axis, mixes = labels.axes[-1], f"{name} over the neuron axis mixes neurons"
    offered = axis is not None and trace.recording.offer.streams and over == 1 and not labels.constant
    unfit = lifts(trace, call, given, axis) if offered and axis is not None and name == "layer_norm" else ""
    if axis is not None and ((offered and not unfit) or call.plan is not None):
        why = f"{mixes}, and a cut can plan it only where its module runs once (at {trace.where()})"
        seen = CallSeen(call.seat, source.dim() - 1, source.dim(), axis, otherwise=why, before=call.plan)
        trace.recording.calls.append(seen)
    if axis is None or not offered or unfit:
        for each in labels.axes[source.dim() - over :]:
            trace.freeze_axis(each, unfit or mixes)
        return None
    note_stream(trace, axis)
    note_read(trace, call.seat, source.dim() - 1, axis)
    for vector in (given["weight"], given["bias"]):
        if vector is not None:
            belong(trace, axis, vector, name)
    return Labels((*labels.axes[:-1], Axis(axis.ids, axis.sites, axis.born)))


def belong(trace: TraceState, axis: Axis, vector: Tensor, name: str) -> None:
    """Entries of a norm's scale or shift belong to the channels; of a layer norm only if they can become zeros."""
    labels = trace.labels(vector)
    own = labels.axes[-1]
    if own is None or (name == "layer_norm" and labels.source is None):
        trace.freeze_axis(axis, f"{name} with a computed scale or shift")
    elif name == "layer_norm" and not vector.requires_grad:
        trace.freeze_axis(axis, "layer_norm whose scale or shift is not trained makes other numbers of zeros")
    else:
        trace.elements.union(axis.ids, own.ids)
        if name == "layer_norm" and labels.source is not None:
            trace.recording.normed[labels.source] = None


def lifts(trace: TraceState, call: UserCall, given: Mapping[str, Any], axis: Axis) -> str:
    """Why a layer norm makes other numbers of a channel of zeros, or cannot run over fewer; empty if neither holds.

    Zeros lie below or above the mean. A scale and a shift of zero make zeros of them again.
    """
    if given["weight"] is None:
        return "layer_norm without a scale makes other numbers of zeros"
    if any(trace.recording.sites[site].kind == HEADS for site in sites_of(trace, axis)):
        return "layer_norm over heads makes other numbers of zeros"
    if call.seat[0].rpartition(".")[0] in trace.fused:
        return "the fused inference of nn.TransformerEncoderLayer runs its norms over all channels"
    return ""
