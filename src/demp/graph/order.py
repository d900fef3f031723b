"""Which channels of an axis are there, in which order, and how residual sums of two widths are carried out.

Channels lie in dense order, but for those of a residual stream whose block outputs keep different channels: there the
channels that the same outputs keep lie together, so that a sum is a few slices. Everything here is a function of the
graph and of ``gone`` alone.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import torch
from torch import Tensor

from demp.graph.elements import components
from demp.graph.neurons import Join, NeuronGraph, Slot, Stream, removable_classes
from demp.graph.sums import JoinPlan


def places(graph: NeuronGraph, gone: Tensor) -> Tensor:
    """Per class: -1 if it is gone, else its rank among the channels of its stream (0 for all others)."""
    rank = torch.zeros(graph.classes, dtype=torch.long)
    for stream in graph.streams:
        order = torch.tensor(list(best_order(stream, gone)))
        ranks = order.argsort()[:, None].expand_as(stream.table)
        rank[stream.table[stream.table >= 0]] = ranks[stream.table >= 0]
    rank[gone] = -1
    return rank


def positions(classes: Tensor, places: Tensor) -> Tensor:
    """Positions of an axis that are still there, in dense numbering, in the order in which they lie in memory."""
    rank = places[classes]
    here = (rank >= 0).nonzero().flatten()
    return here[rank[here].argsort(stable=True)]


def owners(graph: NeuronGraph, slots: Iterable[Slot], gone: Tensor) -> list[Tensor]:
    """Per tensor axis: the class of each index that is there, in the order in which they lie; 0 if it may not go."""
    standing, removable = places(graph, gone), removable_classes(graph)
    present = [slot.classes[positions(slot.classes, standing)] for slot in slots]
    return [torch.where(removable[classes], classes, 0) for classes in present]


def moved(classes: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Where what is there ``after`` lay ``before``: indices into the axis as it was."""
    was, stays = positions(classes, before), positions(classes, after)
    index = torch.full((len(classes),), -1)
    index[was] = torch.arange(len(was))
    return index[stays]


def is_whole(index: Tensor, size: int) -> bool:
    """Does an index select everything in order?"""
    return len(index) == size and bool((index == torch.arange(size)).all())


def plan_joins(graph: NeuronGraph, places: Tensor) -> dict[str, dict[int, JoinPlan]]:
    """Module path -> number of the sum -> how it is carried out."""
    plans: dict[str, dict[int, JoinPlan]] = defaultdict(dict)
    for join in graph.joins:
        plans[join.module][join.number] = plan_join(join, places)
    return dict(plans)


def plan_join(join: Join, places: Tensor) -> JoinPlan:
    """One sum at the widths and in the order that ``places`` gives."""
    stream, branch = positions(join.stream, places), positions(join.branch, places)
    pairs = torch.full((len(join.branch),), -1)
    pairs[join.target] = join.source
    where = torch.full((len(join.stream),), -1)
    where[stream] = torch.arange(len(stream))
    at = pairs[branch]
    met = torch.where(at >= 0, where[at.clamp(min=0)], -1)
    return JoinPlan(join.operand, join.axis, (len(branch), len(stream)), runs(met), join.sums)


def runs(met: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Contiguous runs (first here, first there, length) of a map from positions here to positions there; -1 is none."""
    found: list[list[int]] = []
    for here, there in enumerate(met.tolist()):
        if there < 0:
            continue
        if found and found[-1][0] + found[-1][2] == here and found[-1][1] + found[-1][2] == there:
            found[-1][2] += 1
        else:
            found.append([here, there, 1])
    return tuple((a, b, c) for a, b, c in found)


def free_streams(graph: NeuronGraph) -> tuple[Stream, ...]:
    """The streams in which the order of channels is free."""
    if not graph.joins:
        return ()
    strand, family = strands_and_families(graph)
    joins: dict[int, list[Join]] = defaultdict(list)
    for join in graph.joins:
        joins[int(family[join.stream[0]])].append(join)
    streaming = torch.isin(family, torch.tensor(list(joins)))
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
    """The stream that these joins make up; None if its order is bound.

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
    channels = {side: tuple(strand[torch.tensor(side)].tolist()) for side in columns}
    order = common_order(dict.fromkeys(channels.values()))
    if order is None:
        return None
    rows = {channel: row for row, channel in enumerate(order)}
    table = torch.full((len(rows), len(columns)), -1)
    for side, column in columns.items():
        table[[rows[channel] for channel in channels[side]], column] = torch.tensor(side)
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


def best_order(stream: Stream, gone: Tensor) -> Sequence[int]:
    """The order of a stream's channels that needs the fewest runs; dense order where nothing is gone or won."""
    if not bool(gone[stream.table[stream.table >= 0]].any()):
        return range(len(stream.table))
    kept = (stream.table >= 0) & ~gone[stream.table.clamp(min=0)]
    patterns = kept.tolist()
    dense = range(len(patterns))
    by_count = sorted(dense, key=lambda i: (-sum(patterns[i]), [not here for here in patterns[i]]))
    by_neighbour = sorted(dense, key=lambda i: gray_rank(patterns[i]))
    return min((dense, by_count, by_neighbour), key=lambda order: runs_in(patterns, order, stream.sums))


def gray_rank(pattern: Iterable[bool]) -> int:
    """Place of a pattern in the reflected Gray code, in which neighbours differ in one output."""
    rank, bit = 0, 0
    for here in pattern:
        bit ^= int(here)
        rank = 2 * rank + bit
    return -rank


def runs_in(patterns: Sequence[Sequence[bool]], order: Sequence[int], sums: Iterable[tuple[int, int]]) -> int:
    """Contiguous runs that all sums need together in this order of channels."""
    total = 0
    for first, second in sums:
        open_run = False
        for i in order:
            here, there = patterns[i][first], patterns[i][second]
            total += here and there and not open_run
            open_run = (here and there) or (open_run and not (here or there))
    return total
