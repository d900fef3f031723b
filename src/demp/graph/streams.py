"""Residual streams: which channels run through which block outputs, and where their order is free."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import torch
from torch import Tensor

from demp.graph.elements import components
from demp.graph.neurons import NeuronGraph, removable_classes
from demp.graph.parts import Join, Stream


def free_streams(graph: NeuronGraph) -> tuple[Stream, ...]:
    """The streams in which the order of channels is free."""
    if not graph.joins:
        return ()
    strand, family = strands_and_families(graph)
    joins: dict[int, list[Join]] = defaultdict(list)
    for join in graph.joins:
        joins[int(family[join.stream[0]])].append(join)
    streaming = torch.isin(family, torch.tensor(list(joins), device="cpu"))
    axes: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    parts = [call.source[start:stop] for call in graph.calls for start, stop in call.parts]
    parts += [call.source for call in graph.calls]
    for classes in [slot.classes for slot in graph.slots] + [read.classes for read in graph.reads] + parts:
        for root in family[classes[streaming[classes]]].unique().tolist():
            axes[root].add(tuple(classes.tolist()))
    bound = ~removable_classes(graph)
    found = (stream_of(members, strand, axes[root], bound) for root, members in joins.items())
    return tuple(stream for stream in found if stream is not None)


def strands_and_families(graph: NeuronGraph) -> tuple[Tensor, Tensor]:
    """Per class: which channel of a stream it is, at any block output; and which stream."""
    a = torch.cat([join.stream[join.source] for join in graph.joins])
    b = torch.cat([join.branch[join.target] for join in graph.joins])
    strand = components(graph.classes, a, b)
    for join in graph.joins:
        members = torch.cat([join.stream, join.branch])
        a, b = torch.cat([a, members[:-1]]), torch.cat([b, members[1:]])
    return strand, components(graph.classes, a, b)


def stream_of(joins: Sequence[Join], strand: Tensor, axes: set[tuple[int, ...]], bound: Tensor) -> Stream | None:
    """The stream that these residual sums make up; None if its order is bound.

    It is bound where a channel never goes (its tensors are not among the graph's slots, so nothing puts them in another
    order), where something else shares an axis with it or repeats its channels, and where two axes have them in
    different orders.
    """
    columns: dict[tuple[int, ...], int] = {}
    sums = []
    for join in joins:
        sides = [tuple(classes.tolist()) for classes in (join.stream, join.branch)]
        sums.append(tuple(columns.setdefault(side, len(columns)) for side in sides))
    if not axes <= columns.keys() or any(
        bool(bound[list(side)].any()) or len(set(side)) < len(side) for side in columns
    ):
        return None
    channels = {side: tuple(strand[torch.tensor(side, device="cpu")].tolist()) for side in columns}
    order = common_order(dict.fromkeys(channels.values()))
    if order is None:
        return None
    rows = {channel: row for row, channel in enumerate(order)}
    table = torch.full((len(rows), len(columns)), -1, device="cpu")
    for side, column in columns.items():
        table[[rows[channel] for channel in channels[side]], column] = torch.tensor(side, device="cpu")
    return Stream(table, tuple(sums))


def common_order(sequences: Collection[Sequence[int]]) -> Iterable[int] | None:
    """An order that agrees with all of the sequences; None if there is none."""
    if len(sequences) == 1:
        return next(iter(sequences))
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for sequence in sequences:
        sorter.add(sequence[0])
        for first, then in pairwise(sequence):
            sorter.add(then, first)
    try:
        return list(sorter.static_order())
    except CycleError:
        return None
