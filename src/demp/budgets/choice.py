"""Which neurons are removed so that a network meets its budget: the least important for what that saves."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.budgets.meter import Goals, Meter
from demp.graph import NeuronGraph
from demp.graph.neurons import removable_classes
from demp.surgery import Limits, plan_cut

LARGEST_BITE = 0.5
"""Share of what is still lacking that one round of the choice takes at most, before what is saved is counted anew."""
GIVEN_BACK = 64
"""How many neurons at most are tried, least expendable first, when a choice saved more than was asked."""
TIGHT = 0.99
"""Share of a goal that should be spent in the end."""
EXCHANGES = 16
"""How many neurons at most are tried in exchange for smaller ones to get there."""
LATENCY_TRIALS = 8
"""Networks that are timed to meet a latency."""
CONFIRMATIONS, NARROWER = 8, 0.95
"""How often a network that met it is timed again, and the share of its FLOPs that the next one gets if not."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Among whom to choose, and what counts."""

    importance: Tensor
    """Per class: the higher, the later it goes; infinite or nan: it stays."""
    limits: Limits
    power: float = 1.0
    """Exponent of what removal saves: the choice is by importance / saved ** power; 0 ignores the saving."""
    streams_first: bool = False
    """A channel of a residual stream may go from a block's output only with, or after, the channel that the stream
    brings to that sum: what is left of it would be passed on otherwise."""
    multiple_tries: int = 4
    """How often a choice is repeated with a stricter goal because widths must stay multiples."""


@dataclass(frozen=True)
class Choice:
    """Classes to remove, and what is still lacking then."""

    chosen: Tensor
    """Boolean per class; nothing that was removed before."""
    lack: Mapping[str, float]
    """Resource -> by how much the network then still exceeds its goal; empty where it lands."""


def choose(meter: Meter, removed: Tensor, goals: Goals, question: Question) -> Choice:
    """The classes to remove from the network that ``removed`` leaves, so that it spends no more than ``goals``.

    Greedy by importance over what removal saves of the resources that are still lacking. What a last large neuron saved
    too much is given back as far as the goals allow, so that the network lands as closely below them as its neurons
    permit. Floors, excluded layers and multiples of ``question.limits`` hold: what ``plan_cut`` would keep is not
    chosen. Deterministic: ties go in the order of the network.
    """
    timed = {name: goal for name, goal in goals.items() if name == "latency"}
    counted = {name: goal for name, goal in goals.items() if name != "latency"}
    choice = choose_counted(meter, removed, counted, question)
    if not timed or not meter.lack(timed, removed | choice.chosen):
        return choice
    return choose_timed(meter, removed, {**counted, **timed}, question)


def least(meter: Meter, resources: Iterable[str], limits: Limits) -> Tensor:
    """Which classes to remove for the network that spends the least of ``resources`` within the limits."""
    equal = torch.ones(meter.graph.classes, device="cpu")
    question = Question(importance=equal, limits=limits)
    return choose(meter, meter.graph.none_removed(), dict.fromkeys(resources, 0.0), question).chosen


def choose_timed(meter: Meter, removed: Tensor, goals: Goals, question: Question) -> Choice:
    """The most FLOPs with which the measured latency holds, by bisection; FLOPs order the neurons.

    A network that met the latency by chance is found out by a second measurement, and a narrower one tried.
    """
    counted = {name: goal for name, goal in goals.items() if name != "latency"}
    low, high = 0.0, meter.spent("flops", removed)
    best: Choice | None = None
    for trial in range(LATENCY_TRIALS):
        flops = low if trial == 0 else (low + high) / 2
        found = choose_counted(meter, removed, {**counted, "flops": flops}, question)
        lack = meter.lack(goals, removed | found.chosen)
        if not lack:
            best, low = Choice(found.chosen, lack), max(flops, meter.spent("flops", removed | found.chosen))
        elif trial == 0:
            return Choice(found.chosen, lack)
        else:
            high = flops
    assert best is not None
    for _ in range(CONFIRMATIONS):
        meter.measure_again(removed | best.chosen)
        lack = meter.lack(goals, removed | best.chosen)
        if not lack:
            break
        low *= NARROWER
        found = choose_counted(meter, removed, {**counted, "flops": low}, question)
        best = Choice(found.chosen, meter.lack(goals, removed | found.chosen))
    return best


def choose_counted(meter: Meter, removed: Tensor, goals: Goals, question: Question) -> Choice:
    """``choose`` for resources that are counted; multiples of widths are met by aiming a little lower."""
    aims = dict(goals)
    chosen = torch.zeros_like(removed)
    for _ in range(question.multiple_tries if question.limits.multiple > 1 else 1):
        taken = greedy(meter, removed, aims, question)
        after = planned(meter.graph, removed, taken, question.limits)
        chosen = after & ~removed
        lack = meter.lack(goals, after)
        if not lack:
            break
        aims = {name: max(0.0, aims[name] - lack.get(name, 0.0)) for name in aims}
    return Choice(chosen, meter.lack(goals, removed | chosen))


def greedy(meter: Meter, removed: Tensor, goals: Goals, question: Question) -> Tensor:
    """Return which classes to remove for the goals, before widths become multiples."""
    after = removed.clone()
    lack = meter.lack(goals, after)
    while lack:
        key, saved = keys(meter, after, lack, question)
        order = bite(meter.graph, after, key, saved, question.limits)
        if not len(order):
            break
        after[order] = True
        lack = meter.lack(goals, after)
    key, _ = keys(meter, removed, dict.fromkeys(goals, 1.0), question, everyone=True)
    after = give_back(meter, removed, after, goals, key)
    return tighten(meter, removed, after, goals, question, key) & ~removed


def tighten(meter: Meter, removed: Tensor, after: Tensor, goals: Goals, question: Question, key: Tensor) -> Tensor:
    """Exchange a large neuron of the choice for smaller ones where that lands closer below the goals."""
    best, landing = after, fullest(meter, goals, after)
    order = (after & ~removed).nonzero().flatten()
    order = order[key[order].argsort(descending=True, stable=True)]
    for c in order[:EXCHANGES].tolist():
        if landing > TIGHT or meter.lack(goals, after):
            break
        if carries_on(meter.graph, after, c):
            continue
        trial = after.clone()
        trial[c] = False
        trial = refilled(meter, trial, goals, question, without=c)
        if not meter.lack(goals, trial) and fullest(meter, goals, trial) > landing:
            best, landing = trial, fullest(meter, goals, trial)
    return best


def refilled(meter: Meter, after: Tensor, goals: Goals, question: Question, *, without: int) -> Tensor:
    """As ``greedy``, by neurons none of which saves more than what is lacking, and never ``without``."""
    while lack := meter.lack(goals, after):
        key, saved = keys(meter, after, lack, question)
        key[without] = math.inf
        order = bite(meter.graph, after, key.masked_fill(saved > 1, math.inf), saved, question.limits)
        if not len(order):
            order = bite(meter.graph, after, key, 1 / saved.clamp(min=1e-300), question.limits)[:1]
        if not len(order):
            break
        after = after.clone()
        after[order] = True
    return after


def fullest(meter: Meter, goals: Goals, removed: Tensor) -> float:
    """How much of the tightest goal is spent."""
    return max((meter.spent(name, removed) / max(goal, 1e-300) for name, goal in goals.items()), default=1.0)


def keys(
    meter: Meter, after: Tensor, lack: Mapping[str, float], question: Question, *, everyone: bool = False
) -> tuple[Tensor, Tensor]:
    """Per class: importance over saving (infinite: not to be had now), and the saving as a share of what is lacking."""
    saved = torch.zeros(meter.graph.classes, dtype=torch.float64, device="cpu")
    for name, excess in lack.items():
        saved = torch.maximum(saved, meter.savings(name, after) / excess)
    open_now = removable_classes(meter.graph) & (saved > 0) & ~after
    for layer in meter.graph.layers:
        if not question.limits.allows(layer.name):
            open_now[layer.classes] = False
    if question.streams_first and not everyone:
        for brought, added in passed_on(meter.graph):
            open_now[added[~after[brought]]] = False
    importance = question.importance.double()
    key = importance.clamp(min=1e-300) / saved.clamp(min=1e-300) ** question.power
    return key.masked_fill(~open_now | importance.isnan() | (importance == math.inf), math.inf), saved


def bite(graph: NeuronGraph, after: Tensor, key: Tensor, saved: Tensor, limits: Limits) -> Tensor:
    """The classes that go next: the lowest keys, down to floors, and at most part of what is lacking."""
    key = key.clone()
    for layer in graph.layers:
        present = layer.classes[~after[layer.classes]]
        spare = len(present) - limits.floor
        ranked = present[key[present].argsort(stable=True)]
        key[ranked[max(spare, 0) :]] = math.inf
    order = key.argsort(stable=True)
    order = order[key[order] < math.inf]
    few = int((saved[order].cumsum(0) <= LARGEST_BITE).sum())
    order = order[: max(1, few)]
    trial = after.clone()
    trial[order] = True
    last = torch.tensor(graph.last_of_slots(after, trial), dtype=torch.long, device="cpu")
    kept = order[~torch.isin(order, last)]
    if len(kept) or not len(order):
        return kept
    key[order] = math.inf  # the only candidate is the last of an axis
    return bite(graph, after, key, saved, limits)


def give_back(meter: Meter, removed: Tensor, after: Tensor, goals: Goals, key: Tensor) -> Tensor:
    """Take neurons out of the choice again while the goals still hold, the least expendable first."""
    if meter.lack(goals, after):
        return after
    candidates = (after & ~removed).nonzero().flatten()
    room = {name: goal - meter.spent(name, after) for name, goal in goals.items()}
    for name, left in room.items():
        candidates = candidates[meter.savings(name, removed)[candidates] >= 0]
        small = meter.savings(name, after & ~one_hot(candidates, after))[candidates] <= 2 * left
        candidates = candidates[small]
    order = candidates[key[candidates].argsort(descending=True, stable=True)]
    for c in order[:GIVEN_BACK].tolist():
        if carries_on(meter.graph, after, c):
            continue
        trial = after.clone()
        trial[c] = False
        if not meter.lack(goals, trial):
            after = trial
    return after


def carries_on(graph: NeuronGraph, after: Tensor, c: int) -> bool:
    """Did a later block's output lose this channel of its stream, too? Then it cannot stay alone."""
    return any(bool(after[added[brought == c]].any()) for brought, added in passed_on(graph))


def passed_on(graph: NeuronGraph) -> list[tuple[Tensor, Tensor]]:
    """Of each residual sum the channels that its stream brings, and those of its branch that they meet, if others."""
    pairs = [(join.stream[join.source], join.branch[join.target]) for join in graph.joins]
    return [(brought[brought != added], added[brought != added]) for brought, added in pairs]


def one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """Return booleans shaped like ``like`` that are true at the given classes."""
    found = torch.zeros_like(like)
    found[classes] = True
    return found


def planned(graph: NeuronGraph, removed: Tensor, chosen: Tensor, limits: Limits) -> Tensor:
    """What is removed after a cut that wants ``chosen``: what limits and coupled layers allow."""
    wanted = {layer.name: chosen[layer.classes] for layer in graph.layers}
    return plan_cut(graph.at(removed), wanted, limits).after.removed
