"""Where the positions of an axis land when a view regroups axes."""

import math

import torch
from torch import Tensor

from demp.graph.elements import Axis
from demp.graph.trace_state import TraceState

LARGEST_VIEW = 1 << 24
"""Views whose regrouped block is larger than this are not followed position by position."""

PACKED = (2, 3)
"""So many parts (key and value; query, key and value) of one linear layer come before the heads in a view."""


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
    trace: TraceState, axis: Axis, sizes: list[int], at: int, new_sizes: list[int], *, packed: bool = False
) -> tuple[int, Axis] | None:
    """The first of the new dimensions that a neuron axis becomes, if what lies behind it can go as one; else None.

    The outputs of a linear layer that become a map (``view(B, C, H, W)``) go channel by channel. Of ``packed`` ones
    (query, key and value in one, in front) it is the second: the neurons of all parts at one place go as one.
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
    pairs = (ids * trace.elements.count + first).unique()
    ends = pairs.div(trace.elements.count, rounding_mode="floor")
    if len(ends.unique()) != len(pairs):
        return None  # some neuron lies in several of the new channels
    trace.elements.union(ends, pairs % trace.elements.count)
    alike = (sites == sites[:, :1]).all(1)
    return dim, Axis(first[:, 0], torch.where(alike, sites[:, 0], 0), axis.born, axis.producer)


def positions_in(sizes: list[int], at: int) -> Tensor | None:
    """Position along dimension ``at`` of every entry of a block; None if the block is too large to follow."""
    total = math.prod(sizes)
    if total > LARGEST_VIEW or total == 0:
        return None
    return torch.arange(total, device="cpu").div(math.prod(sizes[at + 1 :]), rounding_mode="floor") % sizes[at]
