"""What the training forward says of neurons and residual sums beyond the evaluation forward."""

from functools import partial

import torch
from torch import Tensor

from demp.graph.call_rules import bind
from demp.graph.following import Forward
from demp.graph.parts import HEADS
from demp.graph.recording import CallSeen, JoinSeen, ReadSeen, Recording, Site
from demp.graph.tracer import Tracer

AUXILIARY = (
    "the training forward reads these neurons where the evaluation forward does not (an auxiliary head, or a number)"
)
IN_TRAINING = " (in the training forward)"


def learn(evaluation: Forward, training: Forward, owners: set[str]) -> dict[str, str]:
    """Let what the training forward binds and freezes hold for the evaluation forward as well.

    A residual sum may add two widths only if both forwards have the same one at the same place: ``owners`` are the
    modules whose sums may. Returns those whose sums differ, and why.
    """
    base = stored_elements(evaluation)
    other = differing_owners(evaluation, training, owners, base)
    here, there = evaluation.tracer, training.tracer
    may = {(j.module, j.number) for j in here.recording.joins if j.module in owners and j.module not in other}
    for join in there.recording.joins:
        if not join.planned and (join.module, join.number) not in may:
            there.elements.union(join.stream.ids, join.branch.ids)
    here.elements.inherit(there.elements, base, IN_TRAINING)
    known = {read.weight for read in here.recording.reads}
    for read in there.recording.reads:
        if read.weight not in known:
            stored, judged = read.neurons.ids < base, judged_in_evaluation(here, there, read)
            here.elements.freeze(read.neurons.ids[stored & ~judged], AUXILIARY)
            here.recording.auxiliary.append((read.weight, read.neurons.ids[stored & judged]))
    here.recording.lifted += [(ids[ids < base], why + IN_TRAINING) for ids, why in there.recording.lifted]
    return other


def judged_in_evaluation(here: Tracer, there: Tracer, read: ReadSeen) -> Tensor:
    """Per position of what only training reads: is it what evaluation reads too, behind one and the same activation?

    Where that is zero an auxiliary head reads zeros. A module may hold several activations of a kind; those that one
    neuron passes are told apart by nothing else, so that there must be one. Heads fade in what reads them, and stay.
    """
    found = torch.zeros(len(read.neurons.ids), dtype=torch.bool)
    for mark in read.neurons.sites.unique().tolist() if is_of_activations(there, read) else ():
        here_too = read.neurons.sites == mark
        ids, sites = read.neurons.ids[here_too], there.elements.sites_of(mark)
        if len(sites) == 1:
            site = there.recording.sites[next(iter(sites))]
            alone = len(passed(there.recording, site, ids)) == 1
            if alone and site.certain and site.kind != HEADS:
                found[here_too] = torch.isin(ids, read_behind(here, site, ids))
    return found


def is_of_activations(tracer: Tracer, read: ReadSeen) -> bool:
    """Are they read as an activation makes them, but for moves, with nothing written into them since?"""
    return read.activated != 0 and read.activated not in tracer.rewritten


def passed(recording: Recording, like: Site, ids: Tensor) -> list[int]:
    """Activations of the same module and kind that some of these elements pass."""
    return [
        number
        for number, site in enumerate(recording.sites)
        if (site.name, site.kind) == (like.name, like.kind) and bool(torch.isin(ids, site.ids).any())
    ]


def read_behind(here: Tracer, like: Site, ids: Tensor) -> Tensor:
    """Elements that evaluation reads behind the only activation of that module and kind which they pass."""
    numbers = passed(here.recording, like, ids)
    found = [torch.zeros(0, dtype=torch.long)]
    for read in filter(partial(is_of_activations, here), here.recording.reads) if len(numbers) == 1 else ():
        marks = [mark for mark in read.neurons.sites.unique().tolist() if here.elements.sites_of(mark) == {*numbers}]
        found.append(read.neurons.ids[torch.isin(read.neurons.sites, torch.tensor(marks))])
    return torch.cat(found)


def learn_calls(evaluation: Forward, training: Forward, callers: set[str]) -> set[str]:
    """Of the modules ``callers`` those whose calls (``graph.calls``) are the same in both forwards.

    A cut can plan them. A module that this training forward leaves out has nothing to say against them. What calls of
    the training forward bind without a plan, `learn` hands on.
    """
    base = stored_elements(evaluation)
    here, there = evaluation.tracer.recording, training.tracer.recording
    same = {seen.seat: seen for seen in there.calls}
    alike_each = {name for name in callers if training.ran[name] <= 1 or name in there.repeated}
    may = set() if training.by_chance else alike_each
    for seen in here.calls:
        other = same.get(seen.seat)
        if not training.ran[seen.seat[0]]:
            continue
        if (other is None and seen.needed) or (other is not None and not alike(seen, other, base)):
            may.discard(seen.seat[0])
        if training.positions.get(seen.seat) in training.recomputed and seen.needed:
            may.discard(seen.seat[0])
    known = {seen.seat for seen in here.calls}
    for seen in there.calls:
        if seen.before is None and (seen.seat not in known or seen.seat[0] not in may):
            bind(training.tracer.elements, seen)
    return may


def alike(one: CallSeen, other: CallSeen, base: int) -> bool:
    """Is it the same call on the same neurons?"""
    return (one.axis, one.parts, stored(one.source.ids, base)) == (
        other.axis,
        other.parts,
        stored(other.source.ids, base),
    )


def stored_elements(forward: Forward) -> int:
    """Elements of parameters and buffers: they come first, and have the same numbers in every forward."""
    return sum(len(axis.ids) for axes in forward.tracer.recording.axes.values() for axis in axes)


def differing_owners(evaluation: Forward, training: Forward, owners: set[str], base: int) -> dict[str, str]:
    """Modules whose residual sums the training forward does not have in the same way, and what it does instead."""
    found: dict[str, str] = {}
    same = {(join.module, join.number): join for join in training.tracer.recording.joins}
    for join in evaluation.tracer.recording.joins:
        if join.planned or join.module not in owners:
            continue
        why = difference(join, same.get((join.module, join.number)), training, base)
        if why:
            found.setdefault(join.module, why)
    return found


def difference(join: JoinSeen, other: JoinSeen | None, training: Forward, base: int) -> str:
    """What the training forward does otherwise about one sum; empty if nothing."""
    module = join.module
    if training.by_chance:
        return "the training forward draws from Python's random, which may leave blocks out"
    if not training.ran[module]:
        return "the training forward leaves the module out"
    if training.ran[module] > 1:
        return "the training forward runs the module more than once"
    if module in training.nested:
        return "a module inside it sums in the training forward"
    if other is None or key_of(join, base) != key_of(other, base):
        return "the training forward has another sum at its place, or none"
    if training.positions.get((module, join.number)) in training.recomputed:
        return "training computes it again outside of the module's forward (checkpoint the whole module instead)"
    return ""


def key_of(join: JoinSeen, base: int) -> tuple[int, int, list[int], list[int]]:
    """What a sum is: which operand is the stream, and the channels of both sides."""
    return join.operand, join.axis, stored(join.stream.ids, base), stored(join.branch.ids, base)


def stored(ids: Tensor, base: int) -> list[int]:
    """Elements of parameters and buffers by number; all others are alike."""
    return torch.where(ids < base, ids, -1).tolist()
