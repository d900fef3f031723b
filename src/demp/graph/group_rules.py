"""Axis rule for group norms: every group is normalised on its own, so that whole groups go or stay."""

from typing import Any

from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.rules import rule
from demp.graph.trace_state import TraceState


@rule("native_group_norm")
def group_norm(trace: TraceState, call: Call) -> Any:
    """The channels of a group share mean and deviation: they go together, and the others do not notice."""
    source, groups = call.args[0], int(call.args[6])
    labels = trace.labels(source)
    vectors = [a for a in call.args[1:3] if isinstance(a, Tensor)]
    axis, path = labels.axes[1], trace.running()
    for other in labels.axes[2:]:
        trace.freeze_axis(other, "group_norm runs over the neuron axis")
    if axis is None or trace.groups.get(path) != groups:
        why = "the number of groups of a group_norm is held by no module"
        trace.freeze_axis(axis, why)
        for vector in vectors:
            trace.freeze_tensor(vector, why if axis is not None else "group norm of a tensor without neurons")
        return [Labels((labels.axes[0], axis, *[None] * (source.dim() - 2))), None, None]
    size = len(axis.ids) // groups
    first = axis.ids[::size]
    whole = first.repeat_interleave(size)
    trace.elements.union(axis.ids, whole)
    for vector in vectors:
        own = trace.labels(vector).axes[0]
        if own is None:
            trace.freeze_axis(axis, "group norm with a computed vector")
        else:
            trace.elements.union(own.ids, axis.ids)
    counted = trace.recording.attributes.setdefault((path, "num_groups"), first)
    trace.elements.union(counted, first)
    made = Axis(axis.ids, axis.sites, axis.born, axis.producer)
    return [Labels((labels.axes[0], made, *[None] * (source.dim() - 2)), constant=labels.constant), None, None]
