"""Modules that run several times in one forward, each time with the same calls on the same neurons."""

from collections import defaultdict
from collections.abc import Mapping

import torch

from demp.graph.recording import CallSeen, Recording


def merge_runs(recording: Recording, ran: Mapping[str, int]) -> None:
    """Keep the calls of the first run alone where a module ran several times alike: one plan serves every run.

    ``ran`` is the number of runs of each module. Modules whose runs were merged are noted in ``recording.repeated``;
    those whose runs differ stay as they are, so that nothing can be planned in them.
    """
    by_module: dict[str, list[CallSeen]] = defaultdict(list)
    for seen in recording.calls:
        by_module[seen.seat[0]].append(seen)
    for module, calls in by_module.items():
        runs = ran.get(module, 0)
        counts = {kind: count for (path, kind), count in recording.counts.items() if path == module}
        if runs < 2 or any(count % runs for count in counts.values()):
            continue
        places: dict[tuple[str, int], list[CallSeen]] = defaultdict(list)
        for seen in sorted(calls, key=lambda seen: seen.seat):
            _, kind, number = seen.seat
            places[kind, number % (counts[kind] // runs)].append(seen)
        if all(len(each) == runs and all(alike(each[0], other) for other in each) for each in places.values()):
            later = {id(other) for each in places.values() for other in each[1:]}
            recording.calls[:] = [seen for seen in recording.calls if id(seen) not in later]
            recording.counts.update({(module, kind): count // runs for kind, count in counts.items()})
            recording.repeated.add(module)


def alike(one: CallSeen, other: CallSeen) -> bool:
    """Is it the same call on the same neurons?"""
    form = [(c.axis, c.ndim, c.parts, c.out_axis, c.inner, c.needed, c.binds, c.before, c.grid) for c in (one, other)]
    if form[0] != form[1] or not torch.equal(one.source.ids, other.source.ids):
        return False
    if one.out is None or other.out is None:
        return one.out is other.out
    return torch.equal(one.out.ids, other.out.ids)
