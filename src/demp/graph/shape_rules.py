"""Axis rules for operations that move, split and concatenate axes without arithmetic."""

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from demp.graph.call_rules import Landing, note_view, plans_parts
from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.regrouping import PACKED, follow, regroup, split
from demp.graph.rules import rule
from demp.graph.trace_state import TraceState
from demp.graph.zeros import note_lifted


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(trace: TraceState, call: Call, *, parts: int | None = None) -> Labels:
    """Regroup axes: a neuron axis may be repeated by merging; what splitting it leaves goes as `split` says.

    ``parts``: which of the axes that a neuron axis is split into is taken apart later.
    """
    source = call.args[0]
    labels = trace.labels(source)
    new: list[Axis | None] = []
    for old_dims, new_sizes in regroup(tuple(source.shape), tuple(call.out.shape)):
        sizes = [source.shape[d] for d in old_dims]
        block: list[Axis | None] = [None] * len(new_sizes)
        carrying = [(at, dim, axis) for at, dim in enumerate(old_dims) if (axis := labels.axes[dim]) is not None]
        for at, dim, axis in sorted(carrying, key=lambda one: one[2].born < 0):  # of two that merge, what was computed
            followed = follow(sizes, at, new_sizes, axis.ids)
            if followed is not None:
                to, made, inner = followed[0], axis.take(followed[1]), None
            else:
                packed = parts == 0 if parts is not None else is_packed(trace, source, len(new), new_sizes)
                to, made = split(trace, axis, sizes, at, new_sizes, packed=packed) or (0, None)
                inner = tuple(new_sizes[to + 1 :])
            behind = tuple(source.shape[old_dims[-1] + 1 :][:1]) == (1,)
            place = (old_dims[0], len(old_dims), len(new), len(new_sizes), int(behind))
            free = made is not None and block[to] is None
            if (
                made is not None
                and free
                and note_view(trace, source, axis, Landing(made, dim, len(new) + to, inner, place))
            ):
                block[to] = made
            else:
                trace.freeze_axis(axis, "a view splits or mixes the neuron axis")
        new.extend(block)
    return Labels(tuple(new), labels.source, labels.constant, labels.computed_from, labels.scale)


def is_packed(trace: TraceState, source: Tensor, at: int, sizes: list[int]) -> bool:
    """Do parts of one layer come before its heads in a view that makes these ``sizes``, from axis ``at`` on?

    An earlier cut knows. Where nothing does, two or three in front of two other axes are taken for parts.
    """
    plan = trace.call_at and trace.call_at.plan
    if plan is not None and plan.sizes and at <= plan.sizes[0] < at + len(sizes):
        return max(sizes[: plan.sizes[0] - at], default=1) > 1
    return source.dim() > 2 and len(sizes) == 3 and sizes[0] in PACKED


@rule("t", "transpose", "permute", "unsqueeze", "squeeze", "squeeze_", "unsqueeze_", "t_", "transpose_", "movedim")
def move_axes(trace: TraceState, call: Call) -> Any:
    """Reorder, insert or drop axes; the source name survives, so a transposed weight is still the weight."""
    labels = trace.labels(call.args[0])
    axes, n = list(labels.axes), len(labels.axes)
    kind = call.name.rstrip("_")
    if kind == "t":
        axes = axes[::-1]
    elif kind == "transpose":
        a, b = call.arg(1, "dim0") % n, call.arg(2, "dim1") % n
        axes[a], axes[b] = axes[b], axes[a]
    elif kind == "permute":
        axes = [axes[d % n] for d in call.arg(1, "dims")]
    elif kind == "unsqueeze":
        axes.insert(call.arg(1, "dim") % (n + 1), None)
    elif kind == "squeeze":
        before, _ = trace.layout_before
        dims = call.dims(call.arg(1, "dim"), n) if n else []
        squeezed = [d for d in dims if before[d] == 1]
        for d in squeezed:
            trace.freeze_axis(axes[d], "squeezed away")
        axes = [axis for d, axis in enumerate(axes) if d not in squeezed]
    else:
        trace.freeze_tensor(call.args[0], f"unknown operation {call.name}")
        return None
    return Labels(tuple(axes), labels.source, labels.constant, labels.computed_from, labels.scale)


@rule("expand", "repeat")
def expand(trace: TraceState, call: Call) -> Labels:
    """Broadcast or tile; a tiled neuron axis repeats its neurons."""
    source, out = call.args[0], call.out
    labels = trace.labels(source)
    lead = out.dim() - source.dim()
    axes: list[Axis | None] = [None] * lead
    for dim, axis in enumerate(labels.axes):
        size, target = source.shape[dim], out.shape[lead + dim]
        if axis is None or size == target:
            axes.append(axis)
        elif call.name == "repeat":
            axes.append(axis.take(torch.arange(target, device="cpu") % size))
        else:
            trace.freeze_axis(axis, "a single neuron is broadcast")
            axes.append(None)
    return Labels(tuple(axes), labels.source if call.name == "expand" else None, labels.constant)


@rule("slice", "narrow", "select", "split", "split_with_sizes", "unbind", "chunk", "unsafe_split",
      "unsafe_split_with_sizes", "unsafe_chunk")  # fmt: skip
def parts(trace: TraceState, call: Call) -> Any:
    """Parts of an axis: neurons survive when all parts shrink alike (a gate packed in one matrix)."""
    source = call.args[0]
    labels = trace.labels(source)
    at = 2 if call.name not in ("slice", "select", "unbind", "narrow") else 1
    dim = call.arg(at, "dim", 0) % source.dim()
    axis = labels.axes[dim]
    if call.name in ("select", "unbind"):
        return single_positions(trace, call, labels, dim)
    outs = list(call.out) if isinstance(call.out, (tuple, list)) else [call.out]
    first, step = first_and_step(call, source.shape[dim])
    ends = list(accumulate((out.shape[dim] * step for out in outs), initial=first))
    results = []
    for start, stop in pairwise(ends):
        axes = list(labels.axes)
        if axis is not None:
            axes[dim] = axis.take(torch.arange(start, stop, step, device="cpu"))
        results.append(Labels(tuple(axes), labels.source, labels.constant))
    sizes = [out.shape[dim] for out in outs]
    if axis is not None and sizes[0] != source.shape[dim]:
        planned = step == 1 and plans_parts(trace, call.name, source, dim, axis, list(pairwise(ends)))
        if not planned:
            shrink_alike(trace, call.name, axis, sizes[0], step)
    return results if isinstance(call.out, (tuple, list)) else results[0]


def single_positions(trace: TraceState, call: Call, labels: Labels, dim: int) -> Any:
    """One position of an axis, or each of them alone (``unbind``): neurons on it stay."""
    axis, rest = labels.axes[dim], tuple(a for d, a in enumerate(labels.axes) if d != dim)
    if call.name == "select" and axis is not None:  # often for its shape alone
        return Labels(rest, labels.source, labels.constant, chosen=axis)
    trace.freeze_axis(axis, f"{call.name} picks single neurons")
    result = Labels(rest, labels.source, labels.constant)
    return [result] * len(call.out) if isinstance(call.out, (tuple, list)) else result


def first_and_step(call: Call, size: int) -> tuple[int, int]:
    """The first position that is taken of an axis of this size, and the distance to the next one."""
    if call.name == "slice":
        start = call.arg(2, "start") or 0
        return max(start + size, 0) if start < 0 else min(start, size), call.arg(4, "step", 1)
    return (call.arg(2, "start") if call.name == "narrow" else 0), 1


def shrink_alike(trace: TraceState, name: str, axis: Axis, size: int, step: int) -> None:
    """Parts of ``size`` positions, ``step`` apart, shrink alike where they divide the axis; else all of it stays."""
    why, whole = f"{name} cuts the neuron axis into parts that could shrink unequally", len(axis.ids)
    if step > 1 and whole == size * step:  # every second, and the others
        rows = axis.ids.view(size, step).t().flatten()
        trace.elements.must_balance(rows, step, why)
    elif step == 1 and size and whole % size == 0:
        trace.elements.must_balance(axis.ids, whole // size, why)
    else:
        trace.freeze_axis(axis, why)


@rule("cat", "concatenate", "concat")
def concat(trace: TraceState, call: Call) -> Labels:
    """Concatenate along one axis; along the others the operands meet."""
    tensors = [t for t in call.args[0] if t.dim() == call.out.dim()]
    dim = call.arg(1, "dim", 0) % call.out.dim()
    met = trace.meet(tensors, call.out.shape, "cat", skip=dim)
    columns = [trace.labels(t).axes[dim] for t in tensors]
    axes = list(met.axes)
    if any(c is not None for c in columns):
        filled = [
            c if c is not None else trace.fixed(t.shape[dim], "joined with a tensor without neurons")
            for c, t in zip(columns, tensors, strict=True)
        ]
        newest = max(filled, key=lambda c: c.born)
        axes[dim] = Axis(
            torch.cat([c.ids for c in filled]), torch.cat([c.sites for c in filled]), newest.born, newest.producer
        )
    return Labels(tuple(axes), constant=met.constant)


@rule("stack")
def stack(trace: TraceState, call: Call) -> Labels:
    """A new axis; along the old ones the operands meet."""
    tensors = list(call.args[0])
    met = trace.meet(tensors, tensors[0].shape, "stack")
    axes = list(met.axes)
    axes.insert(call.arg(1, "dim", 0) % call.out.dim(), None)
    return Labels(tuple(axes), constant=met.constant)


@rule("constant_pad_nd")
def pad(trace: TraceState, call: Call) -> Labels:
    """Padding of a neuron axis adds positions that never go."""
    source, padding = call.args[0], list(call.arg(1, "pad"))
    labels = trace.labels(source)
    axes = list(labels.axes)
    if call.arg(2, "value", 0) != 0:
        note_lifted(trace, axes, call.name)
    for at in range(len(padding) // 2):
        dim = source.dim() - 1 - at
        axis, (before, after) = axes[dim], padding[2 * at : 2 * at + 2]
        if axis is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            trace.freeze_axis(axis, "negative padding of the neuron axis")
            axes[dim] = None
            continue
        ends = [trace.fixed(n, "padded neurons") for n in (before, after)]
        axes[dim] = Axis(
            torch.cat([ends[0].ids, axis.ids, ends[1].ids]),
            torch.cat([ends[0].sites, axis.sites, ends[1].sites]),
            axis.born,
            axis.producer,
        )
    return Labels(tuple(axes), constant=labels.constant)


@rule("empty", "zeros", "ones", "full", "arange", "scalar_tensor", "rand", "randn", "new_zeros", "new_ones",
      "new_empty", "new_full", "linspace", "eye", "randperm", "randint", "tensor")  # fmt: skip
def factory(trace: TraceState, call: Call) -> None:
    """A tensor made in the forward has no neurons."""
