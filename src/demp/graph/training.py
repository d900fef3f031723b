"""What the training forward says of neurons and residual sums beyond the evaluation forward."""

import torch
from torch import Tensor

from demp.graph.call_rules import bind
from demp.graph.following import Forward
from demp.graph.recording import CallSeen, JoinSeen, Recording
from demp.graph.sums import SUM
from demp.graph.unoffered import AUXILIARY

OTHERWISE = (
    "the training forward, which is followed without hooks, reads these neurons without the activation behind which "
    "evaluation reads them"
)
IN_TRAINING = " (in the training forward)"


def learn(evaluation: Forward, training: Forward, owners: set[str]) -> dict[str, str]:
    """Let what the training forward binds and freezes hold for the evaluation forward as well.

    A residual sum may add two widths only if both forwards have the same one at the same place: ``owners`` are the
    modules whose sums may. Returns those whose sums differ, and why.
    """
    base = stored_elements(evaluation)
    other = differing_owners(evaluation, training, owners, base)
    here, there = evaluation.trace, training.trace
    note_counts(here.recording, training)
    may = {(j.module, j.number) for j in here.recording.joins if j.module in owners and j.module not in other}
    for join in there.recording.joins:
        if not join.planned and (join.module, join.number) not in may:
            there.elements.union(join.stream.ids, join.branch.ids)
    here.elements.inherit(there.elements, base, IN_TRAINING)
    runs = {seen.weight for seen in (*here.recording.contractions, *here.recording.in_training)}
    here.recording.in_training += [seen for seen in there.recording.contractions if seen.weight not in runs]
    known = {read.weight for read in here.recording.reads}
    for read in there.recording.reads:
        ids = read.neurons.ids
        if read.weight not in known:
            here.elements.freeze(ids[ids < base], AUXILIARY)
        elif bool((read.neurons.sites == 0).any()):
            bare = ids[(read.neurons.sites == 0) & (ids < base)]
            here.elements.freeze(bare[torch.isin(bare, activated(here.recording, read.weight))], OTHERWISE)
    note_places(here.recording, there.recording, base)
    here.recording.lifted += [(ids[ids < base], why + IN_TRAINING) for ids, why in there.recording.lifted]
    return other


def note_counts(recording: Recording, training: Forward) -> None:
    """How many sums and calls one call of each module makes in training, where all its calls are alike."""
    there = training.trace.recording
    once = {name for name, runs in training.ran.items() if runs == 1 or name in there.repeated}
    for name in recording.sums.keys() & once:
        recording.training_sums.setdefault(name, set()).add(there.sums.get(name, 0))
    for name, kind in recording.counts:
        if name in once:
            recording.training_counts.setdefault((name, kind), set()).add(there.counts.get((name, kind), 0))


def note_places(here: Recording, there: Recording, base: int) -> None:
    """Where sums and calls that read neurons stand in training."""
    theirs = {read.call: stored(read.neurons.ids, base) for read in there.reads if read.call is not None}
    seats = [(join.module, SUM, join.number) for join in there.joins]
    for read in here.reads:
        if read.call is not None and theirs.get(read.call) == stored(read.neurons.ids, base):
            seats.append(read.call)
    for seat in seats:
        here.places.setdefault(seat, set()).update(there.places.get(seat, ()))


def activated(recording: Recording, weight: str) -> Tensor:
    """Elements that a weight reads behind an activation wherever it reads them."""
    seen = [read.neurons for read in recording.reads if read.weight == weight]
    behind = torch.cat([axis.ids[axis.sites != 0] for axis in seen])
    return behind[~torch.isin(behind, torch.cat([axis.ids[axis.sites == 0] for axis in seen]))]


def learn_calls(evaluation: Forward, training: Forward, callers: set[str]) -> set[str]:
    """Of the modules ``callers`` those whose calls (``graph.calls``) are the same in both forwards.

    A cut can plan them. A module that this training forward leaves out has nothing to say against them. What calls of
    the training forward bind without a plan, `learn` hands on.
    """
    base = stored_elements(evaluation)
    here, there = evaluation.trace.recording, training.trace.recording
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
        here.places.setdefault(seen.seat, set()).update(there.places.get(seen.seat, ()) if other is not None else ())
    known = {seen.seat for seen in here.calls}
    for seen in there.calls:
        if seen.before is None and (seen.seat not in known or seen.seat[0] not in may):
            bind(training.trace.elements, seen)
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
    return sum(len(axis.ids) for axes in forward.trace.recording.axes.values() for axis in axes)


def differing_owners(evaluation: Forward, training: Forward, owners: set[str], base: int) -> dict[str, str]:
    """Modules whose residual sums the training forward does not have in the same way, and what it does instead."""
    found: dict[str, str] = {}
    same = {(join.module, join.number): join for join in training.trace.recording.joins}
    for join in evaluation.trace.recording.joins:
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
