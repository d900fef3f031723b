"""Weights that a forward computes from one parameter, each output's part from that output's slice alone.

So does a weight that is standardised over its inputs (``(w - w.mean((1, 2, 3))) / w.std((1, 2, 3))``), with or without
a gain per output. An output may go with its slices: nothing that is left changes. An input may not, since mean and
deviation run over it.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from demp.graph.elements import Labels
from demp.graph.trace_state import TraceState
from demp.graph.zeros import KEEP

PARAMETRIZED = ".parametrizations."
"""Part of the names of parameters of which torch computes a module's weight behind its back."""
PRODUCTS = ("mul", "div")
SUMS = ("add", "sub")


def computed(trace: TraceState, name: str, operands: Sequence[Tensor], labels: Labels) -> Labels:
    """Labels of what an element-wise operation makes of constants: computed from the one weight of its own shape.

    Vectors along an axis of it (gains, means) have met that axis. The last vector that multiplies all is its scale.
    What makes other numbers of a slice of zeros (``exp(w)``) is no such weight: a budget could not fade its outputs.
    """
    found = [trace.labels(tensor) for tensor in operands]
    whole = [(one, t.shape) for one, t in zip(found, operands, strict=True) if one.weight and fits(t, labels)]
    if len({one.weight for one, _ in whole}) != 1 or PARAMETRIZED in f".{whole[0][0].weight}":
        return labels
    base, shape = whole[0]
    keeps = name in KEEP or name == "div" or (name in SUMS and len(operands) > 1)
    if not keeps and sum(size > 1 for size in shape) > 1:  # of means and deviations any function
        return labels
    axes = tuple(
        own if trace.own_axis(base, own) is not None else axis for axis, own in zip(labels.axes, base.axes, strict=True)
    )
    scale = base.scale if name in PRODUCTS else None
    if name == "mul":
        scale = next((one.source for one in found if one.source and one is not base and is_gain(one, labels)), scale)
    return replace(labels, axes=axes, computed_from=base.weight, scale=scale)


def fits(tensor: Tensor, labels: Labels) -> bool:
    """Has the tensor every axis of the result, those along which the result carries anything as they are?"""
    return tensor.dim() == len(labels.axes) and all(
        axis is None or len(axis.ids) == size for axis, size in zip(labels.axes, tensor.shape, strict=True)
    )


def is_gain(one: Labels, labels: Labels) -> bool:
    """Return whether a parameter has one number for each position of the first axis of the result, and no others."""
    first, *others = one.axes
    return (
        first is not None
        and labels.axes[0] is not None
        and len(one.axes) == len(labels.axes)
        and (
            len(first.ids) == len(labels.axes[0].ids)
            and all(axis is not None and len(axis.ids) == 1 for axis in others)
        )
    )


def over_weight(labels: Labels) -> str:
    """Why neurons stay over which a reduction of a weight runs; empty if it is no weight."""
    if not labels.constant or labels.weight is None or len(labels.axes) < 2:
        return ""
    return "the forward takes a mean, a deviation or a sum of a weight over them: without one the others would change"
