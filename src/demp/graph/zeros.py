"""Does an element-wise operation leave a channel at zero that is zero? Streams between norms may lose only such."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from demp.graph.activations import SITES
from demp.graph.drawn import DRAWS
from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.trace_state import TraceState

KEEP = frozenset({
    "mul", "square", "abs", "neg", "sqrt", "sign", "tanh", "sin", "tan", "asinh", "atan", "erf", "expm1", "log1p",
    "dropout", "native_dropout", "copy", "nan_to_num", "round", "trunc", "zero", "zeros_like", "empty_like",
    *(SITES.keys() - {"softplus", "glu"}),
})  # fmt: skip
"""Operations that make zero of zero, whatever their other operands are."""
SUMS = frozenset({"add", "sub", "rsub"})
GATES = frozenset({"sigmoid", "hardsigmoid", "exp", "softplus"})
"""Operations that make other numbers of zeros, which may come to nothing: in a product with what they were made for."""
COMPARISONS = {"ge": True, "le": True, "eq": True, "gt": False, "lt": False, "ne": False}
"""Comparisons, and whether two zeros pass."""
CARRIED = frozenset({
    "view", "_unsafe_view", "expand", "unsqueeze", "squeeze", "permute", "transpose", "detach", "alias", "clone",
    "_to_copy",
})  # fmt: skip
"""Operations that only show such numbers in another way."""


def note_zeros(trace: TraceState, call: Call, labels: Labels) -> Labels:
    """Remember channels before any activation that an operation may lift from zero, and vectors that are added.

    What a gate lifts the labels say, which are returned: `follow_lifted` sees what comes of it.
    """
    axes = enumerate(labels.axes)
    bare = [(len(labels.axes) - at, axis) for at, axis in axes if axis is not None and is_bare(axis)]
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    drawn = trace.training and call.name in DRAWS  # a sum that noise enters lifts zeros, a product does not
    if labels.constant or not bare or drawn:
        return labels
    for from_end, axis in bare:
        if not keeps_zeros(trace, call, from_end):
            why = f"{call.name} makes other numbers of zeros, as a layer norm's mean does (at {trace.where()})"
            if call.name.removesuffix("_") in GATES or out.dtype == torch.bool or adds_number(call):
                return replace(labels, lifted=why)
            trace.recording.lifted.append((axis.ids, why))
    return labels


def follow_lifted(trace: TraceState, call: Call) -> str:
    """An operation may use what a gate made of zeros. In a product with zeros it is zero; elsewhere its neurons stay.

    Returns why the result is other than zero, if it is the gate itself in another form.
    """
    found = ""
    for tensor in trace.tensors((call.args, call.kwargs)):
        labels = trace.labels(tensor)
        if labels.lifted and (call.name in CARRIED or scales(call)):
            found = labels.lifted
        elif labels.lifted and not meets_zeros(trace, call, tensor, labels):
            lift(trace, [tensor])
    return found


def adds_number(call: Call) -> bool:
    """Is it the sum of a tensor and a number, like 1 + erf(x) in a GELU that is written out?"""
    return call.name.removesuffix("_") in SUMS and any(isinstance(side, (int, float)) for side in call.args[:2])


def scales(call: Call) -> bool:
    """Is it a tensor times a number, or divided by one?"""
    return call.name in ("mul", "div") and any(isinstance(side, (int, float)) for side in call.args[:2])


def meets_zeros(trace: TraceState, call: Call, gate: Tensor, labels: Labels) -> bool:
    """Is it a product of the gate and something that is zero where the gate's neurons are?"""
    if call.name not in ("mul", "mul_"):
        return False
    others = [side for side in call.args[:2] if side is not gate]
    bare = [(gate.dim() - at, axis) for at, axis in enumerate(labels.axes) if axis is not None and is_bare(axis)]
    return len(others) == 1 and all(is_zero(trace, others[0], from_end, axis) for from_end, axis in bare)


def is_zero(trace: TraceState, side: object, from_end: int, neurons: Axis) -> bool:
    """Is it made by weights of the same neurons, and so zero where they are?"""
    if not isinstance(side, Tensor) or not carries(trace, side, from_end):
        return False
    labels = trace.labels(side)
    axis = labels.axes[side.dim() - from_end]
    made = axis is not None and axis.born >= 0 and len(axis.ids) == len(neurons.ids)
    return made and not (labels.lifted or labels.noise or labels.constant or labels.source)


def lift(trace: TraceState, tensors: Iterable[Tensor]) -> None:
    """What gates made of zeros, or was picked by its position, is used as it is: the neurons stay."""
    for labels in map(trace.labels, tensors):
        trace.freeze_axis(labels.chosen, "positions of neurons are used")
        if labels.lifted:
            axes = [axis for axis in labels.axes if axis is not None and is_bare(axis)]
            trace.recording.lifted += [(axis.ids, labels.lifted) for axis in axes]


def note_lifted(trace: TraceState, axes: Iterable[Axis | None], what: str) -> None:
    """An operation makes other numbers of zeros: linear neurons on these axes stay."""
    if trace.recording.offer.linear:
        why = f"{what} makes other numbers of zeros (at {trace.where()})"
        trace.recording.lifted += [(axis.ids, why) for axis in axes if axis is not None and is_bare(axis)]


def is_bare(axis: Axis) -> bool:
    """Are there neurons on it that no activation has touched?"""
    return bool((axis.sites == 0).any())


def keeps_zeros(trace: TraceState, call: Call, from_end: int) -> bool:
    """Is the result zero where the operands are that have neurons on this axis (counted from the end)?"""
    name = call.name.removesuffix("_")
    if name in SUMS:
        return all(may_be_added(trace, side, from_end) for side in call.args[:2])
    if name in COMPARISONS:
        other = call.arg(1, "other")
        same = carries(trace, other, from_end) if isinstance(other, Tensor) else other == 0
        return same and not COMPARISONS[name]
    if name == "pow":
        exponent = call.arg(1, "exponent")
        return isinstance(exponent, (int, float)) and exponent > 0
    if name == "div":
        return carries(trace, call.args[0], from_end)
    if name == "masked_fill":
        value = call.arg(2, "value")
        return not isinstance(value, Tensor) and value == 0
    return name in KEEP or call.name in KEEP


def carries(trace: TraceState, side: object, from_end: int) -> bool:
    """Has this operand neurons on the axis?"""
    if not isinstance(side, Tensor) or side.dim() < from_end:
        return False
    return trace.labels(side).axes[side.dim() - from_end] is not None


def may_be_added(trace: TraceState, side: object, from_end: int) -> bool:
    """Has this side of a sum neurons on the axis, or is it 0? A parameter that has is remembered as a writer."""
    if not isinstance(side, Tensor):
        return side == 0
    found, source = carries(trace, side, from_end), trace.labels(side).source
    if found and source is not None:
        trace.recording.tables[source] = None
    return found
