"""Axis rules for operations that move, split and join axes without arithmetic."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from demp.graph.call_rules import note_view, plans_parts
from demp.graph.elements import Axis, Labels
from demp.graph.rules import Call, rule
from demp.graph.zeros import note_lifted

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer

LARGEST_VIEW = 1 << 24
"""Views whose regrouped block is larger than this are not followed position by position."""

PACKED = (2, 3)
"""So many parts (key and value; query, key and value) of one linear layer come before the heads in a view."""


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(tracer: Tracer, call: Call) -> Labels:
    """Regroup axes: a neuron axis may be repeated by merging, but not split."""
    source = call.args[0]
    labels = tracer.labels(source)
    new: list[Axis | None] = []
    for old_dims, new_sizes in regroup(tuple(source.shape), tuple(call.out.shape)):
        sizes = [source.shape[d] for d in old_dims]
        block: list[Axis | None] = [None] * len(new_sizes)
        for at, dim in enumerate(old_dims):
            axis = labels.axes[dim]
            if axis is None:
                continue
            landing = follow(sizes, at, new_sizes, axis.ids)
            if landing is not None:
                to, made, inner = landing[0], axis.take(landing[1]), None
            else:
                packed = source.dim() > 2 and len(new_sizes) == 3 and new_sizes[0] in PACKED
                to, made = split(tracer, axis, sizes, at, new_sizes, packed=packed) or (0, None)
                inner = tuple(new_sizes[to + 1 :])
            free = made is not None and block[to] is None
            if made is not None and free and note_view(tracer, source, dim, axis, made, len(new) + to, inner):
                block[to] = made
            else:
                tracer.freeze_axis(axis, "a view splits or mixes the neuron axis")
        new.extend(block)
    return Labels(tuple(new), labels.source, labels.constant, labels.computed_from, labels.scale)


def regroup(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of old dimensions and new sizes with equal products, in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        dims, sizes, a, b = [], [], 1, 1
        while True:
            if (a <= b and i < len(old)) or j >= len(new):
                a *= old[i]
                dims.append(i)
                i += 1
            else:
                b *= new[j]
                sizes.append(new[j])
                j += 1
            if a == b and dims and sizes:
                break
            if i >= len(old) and j >= len(new):
                break
        while i < len(old) and old[i] == 1 and (j >= len(new)):
            dims.append(i)
            i += 1
        while j < len(new) and new[j] == 1 and (i >= len(old)):
            sizes.append(1)
            j += 1
        groups.append((dims, sizes))
    return groups


def follow(sizes: list[int], at: int, new_sizes: list[int], ids: Tensor | None = None) -> tuple[int, Tensor] | None:
    """Where old dimension ``at`` of a block lands: new dimension and old position per new position, or None.

    Positions that hold the same element of ``ids`` are as good as one another (channels repeated over the batch).
    """
    if sizes == new_sizes:
        return at, torch.arange(sizes[at], device="cpu")
    position = positions_in(sizes, at)
    if position is None:
        return None
    grid = position.view(new_sizes)
    held = grid if ids is None else ids[grid]
    varying = [d for d in range(grid.dim()) if bool((held != held.narrow(d, 0, 1)).any())]
    if len(varying) > 1 or (not varying and 1 not in new_sizes):
        return None
    dim = varying[0] if varying else new_sizes.index(1)
    line = grid.movedim(dim, 0).reshape(new_sizes[dim], -1)[:, 0]
    return dim, line


def split(
    tracer: Tracer, axis: Axis, sizes: list[int], at: int, new_sizes: list[int], *, packed: bool = False
) -> tuple[int, Axis] | None:
    """The first of the new dimensions that a neuron axis becomes, if what lies behind it can go as one; else None.

    The outputs of a linear layer that become a map (``view(B, C, H, W)``) go channel by channel. Of ``packed`` ones
    (query, key and value in one) it is the second: the neurons of all parts at one place go as one.
    """
    position = positions_in(sizes, at)
    if position is None:
        return None
    grid = position.view(new_sizes)
    held = axis.ids[grid]
    varying = [d for d in range(grid.dim()) if bool((held != held.narrow(d, 0, 1)).any())]
    if not varying:
        return None
    dim = varying[1 if packed and len(varying) > 1 else 0]
    rows = grid.movedim(dim, 0).reshape(new_sizes[dim], -1)
    ids, sites = axis.ids[rows], axis.sites[rows]
    first = ids[:, :1].expand_as(ids)
    pairs = (ids * tracer.elements.count + first).unique()
    ends = pairs.div(tracer.elements.count, rounding_mode="floor")
    if len(ends.unique()) != len(pairs):
        return None  # some neuron lies in several of the new channels
    tracer.elements.union(ends, pairs % tracer.elements.count)
    alike = (sites == sites[:, :1]).all(1)
    return dim, Axis(first[:, 0], torch.where(alike, sites[:, 0], 0), axis.born, axis.producer)


def positions_in(sizes: list[int], at: int) -> Tensor | None:
    """Position along dimension ``at`` of every entry of a block; None if the block is too large to follow."""
    total = math.prod(sizes)
    if total > LARGEST_VIEW or total == 0:
        return None
    return torch.arange(total, device="cpu").div(math.prod(sizes[at + 1 :]), rounding_mode="floor") % sizes[at]


@rule("t", "transpose", "permute", "unsqueeze", "squeeze", "squeeze_", "unsqueeze_", "t_", "transpose_", "movedim")
def move_axes(tracer: Tracer, call: Call) -> Any:
    """Reorder, insert or drop axes; the source name survives, so a transposed weight is still the weight."""
    labels = tracer.labels(call.args[0])
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
        before, _ = tracer.layout_before(call)
        dims = call.dims(call.arg(1, "dim"), n) if n else []
        gone = [d for d in dims if before[d] == 1]
        for d in gone:
            tracer.freeze_axis(axes[d], "squeezed away")
        axes = [axis for d, axis in enumerate(axes) if d not in gone]
    else:
        tracer.freeze_tensor(call.args[0], f"unknown operation {call.name}")
        return None
    return Labels(tuple(axes), labels.source, labels.constant, labels.computed_from, labels.scale)


@rule("expand", "repeat")
def expand(tracer: Tracer, call: Call) -> Labels:
    """Broadcast or tile; a tiled neuron axis repeats its neurons."""
    source, out = call.args[0], call.out
    labels = tracer.labels(source)
    lead = out.dim() - source.dim()
    axes: list[Axis | None] = [None] * lead
    for dim, axis in enumerate(labels.axes):
        size, target = source.shape[dim], out.shape[lead + dim]
        if axis is None or size == target:
            axes.append(axis)
        elif call.name == "repeat":
            axes.append(axis.take(torch.arange(target, device="cpu") % size))
        else:
            tracer.freeze_axis(axis, "a single neuron is broadcast")
            axes.append(None)
    return Labels(tuple(axes), labels.source if call.name == "expand" else None, labels.constant)


@rule("slice", "narrow", "select", "split", "split_with_sizes", "unbind", "chunk", "unsafe_split",
      "unsafe_split_with_sizes", "unsafe_chunk")  # fmt: skip
def parts(tracer: Tracer, call: Call) -> Any:
    """Parts of an axis: neurons survive when all parts shrink alike (a gate packed in one matrix)."""
    source = call.args[0]
    labels = tracer.labels(source)
    at = 2 if call.name not in ("slice", "select", "unbind", "narrow") else 1
    dim = call.arg(at, "dim", 0) % source.dim()
    axis = labels.axes[dim]
    outs = list(call.out) if isinstance(call.out, (tuple, list)) else [call.out]
    rest = [a for d, a in enumerate(labels.axes) if d != dim]
    if call.name == "select" and axis is not None:  # often for its shape alone
        return Labels(tuple(rest), labels.source, labels.constant, chosen=axis)
    if call.name in ("select", "unbind"):
        tracer.freeze_axis(axis, f"{call.name} picks single neurons")
        result = Labels(tuple(rest), labels.source, labels.constant)
        return [result] * len(outs) if isinstance(call.out, (tuple, list)) else result
    results, start = [], 0
    if call.name == "slice":
        start = call.arg(2, "start") or 0
        start = max(start + source.shape[dim], 0) if start < 0 else min(start, source.shape[dim])
        step = call.arg(4, "step", 1)
    elif call.name == "narrow":
        start, step = call.arg(2, "start"), 1
    else:
        step = 1
    first = start
    for out in outs:
        axes = list(labels.axes)
        if axis is not None:
            stop = start + out.shape[dim] * step
            axes[dim] = axis.take(torch.arange(start, stop, step, device="cpu"))
            start = stop
        results.append(Labels(tuple(axes), labels.source, labels.constant))
    if axis is not None and outs[0].shape[dim] != source.shape[dim]:
        size, whole = outs[0].shape[dim], source.shape[dim]
        ends = list(accumulate((out.shape[dim] for out in outs), initial=first))
        if step == 1 and plans_parts(tracer, call.name, source, dim, axis, list(pairwise(ends))):
            return results if isinstance(call.out, (tuple, list)) else results[0]
        why = f"{call.name} cuts the neuron axis into parts that could shrink unequally"
        if step > 1 and whole == size * step:  # every second, and the others
            rows = axis.ids.view(size, step).t().flatten()
            tracer.elements.must_balance(rows, step, why)
        elif step == 1 and size and whole % size == 0:
            tracer.elements.must_balance(axis.ids, whole // size, why)
        else:
            tracer.freeze_axis(axis, why)
    return results if isinstance(call.out, (tuple, list)) else results[0]


@rule("cat", "concatenate", "concat")
def concat(tracer: Tracer, call: Call) -> Labels:
    """Join along one axis; along the others the operands meet."""
    tensors = [t for t in call.args[0] if t.dim() == call.out.dim()]
    dim = call.arg(1, "dim", 0) % call.out.dim()
    met = tracer.meet(tensors, call.out.shape, "cat", skip=dim)
    columns = [tracer.labels(t).axes[dim] for t in tensors]
    axes = list(met.axes)
    if any(c is not None for c in columns):
        filled = [
            c if c is not None else tracer.fixed(t.shape[dim], "joined with a tensor without neurons")
            for c, t in zip(columns, tensors, strict=True)
        ]
        newest = max(filled, key=lambda c: c.born)
        axes[dim] = Axis(
            torch.cat([c.ids for c in filled]), torch.cat([c.sites for c in filled]), newest.born, newest.producer
        )
    return Labels(tuple(axes), constant=met.constant)


@rule("stack")
def stack(tracer: Tracer, call: Call) -> Labels:
    """A new axis; along the old ones the operands meet."""
    tensors = list(call.args[0])
    met = tracer.meet(tensors, tensors[0].shape, "stack")
    axes = list(met.axes)
    axes.insert(call.arg(1, "dim", 0) % call.out.dim(), None)
    return Labels(tuple(axes), constant=met.constant)


@rule("constant_pad_nd")
def pad(tracer: Tracer, call: Call) -> Labels:
    """Padding of a neuron axis adds positions that never go."""
    source, padding = call.args[0], list(call.arg(1, "pad"))
    labels = tracer.labels(source)
    axes = list(labels.axes)
    if call.arg(2, "value", 0) != 0:
        note_lifted(tracer, axes, call.name)
    for at in range(len(padding) // 2):
        dim = source.dim() - 1 - at
        axis, (before, after) = axes[dim], padding[2 * at : 2 * at + 2]
        if axis is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            tracer.freeze_axis(axis, "negative padding of the neuron axis")
            axes[dim] = None
            continue
        ends = [tracer.fixed(n, "padded neurons") for n in (before, after)]
        axes[dim] = Axis(
            torch.cat([ends[0].ids, axis.ids, ends[1].ids]),
            torch.cat([ends[0].sites, axis.sites, ends[1].sites]),
            axis.born,
            axis.producer,
        )
    return Labels(tuple(axes), constant=labels.constant)


@rule("empty", "zeros", "ones", "full", "arange", "scalar_tensor", "rand", "randn", "new_zeros", "new_ones",
      "new_empty", "new_full", "linspace", "eye", "randperm", "randint", "tensor")  # fmt: skip
def factory(tracer: Tracer, call: Call) -> None:
    """A tensor made in the forward has no neurons."""
