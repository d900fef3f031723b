"""Which channels of an axis are there, in which order, and how residual sums of two widths are carried out.

Channels lie in dense order, but for those of a residual stream whose block outputs keep different channels: there the
channels that the same outputs keep lie together, so that a sum is a few slices.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from demp.graph.parts import Join, Stream
from demp.graph.sums import JoinPlan


def ranks_of(streams: Iterable[Stream], removed: Tensor) -> Tensor:
    """Per class: -1 if it is removed, else its rank among the channels of its stream (0 for all others)."""
    rank = torch.zeros(len(removed), dtype=torch.long, device="cpu")
    for stream in streams:
        order = torch.tensor(list(best_order(stream, removed)), device="cpu")
        ranks = order.argsort()[:, None].expand_as(stream.table)
        rank[stream.table[stream.table >= 0]] = ranks[stream.table >= 0]
    rank[removed] = -1
    return rank


def positions(classes: Tensor, ranks: Tensor) -> Tensor:
    """Positions of an axis that are still there, in dense numbering, in the order in which they lie in memory."""
    rank = ranks[classes]
    here = (rank >= 0).nonzero().flatten()
    order = rank[here]
    return here[order.argsort(stable=True)] if bool(order.any()) else here


def moved(was: Tensor, now: Tensor, length: int) -> Tensor:
    """Where the positions ``now`` lay among those that there were; -1 where one was not there. ``length``: dense."""
    index = torch.full((length,), -1, device="cpu")
    index[was] = torch.arange(len(was), device="cpu")
    return index[now]


def is_whole(index: Tensor, size: int) -> bool:
    """Does an index select everything in order?"""
    return len(index) == size and bool((index == torch.arange(size, device="cpu")).all())


def plan_join(join: Join, ranks: Tensor) -> JoinPlan:
    """One sum at the widths and in the order that ``ranks`` gives."""
    stream, branch = positions(join.stream, ranks), positions(join.branch, ranks)
    pairs = torch.full((len(join.branch),), -1, device="cpu")
    pairs[join.target] = join.source
    where = torch.full((len(join.stream),), -1, device="cpu")
    where[stream] = torch.arange(len(stream), device="cpu")
    at = pairs[branch]
    met = torch.where(at >= 0, where[at.clamp(min=0)], -1)
    return JoinPlan(
        join.operand, join.axis, (len(branch), len(stream)), runs(met), join.sums, join.training, join.places
    )


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


def best_order(stream: Stream, removed: Tensor) -> Sequence[int]:
    """The order of a stream's channels that needs the fewest runs; dense order where nothing is removed or won."""
    if not bool(removed[stream.table[stream.table >= 0]].any()):
        return range(len(stream.table))
    kept = (stream.table >= 0) & ~removed[stream.table.clamp(min=0)]
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
