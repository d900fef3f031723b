"""How a method with a target removes the lowest of a ranking: down to a share of the neurons, or to a budget."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from demp.budgets import Budget, Meter, Question, choose
from demp.errors import UsageError
from demp.importance.ranking import RANKINGS, Found, RankingName, flags
from demp.methods.base import View
from demp.surgery import Limits

LAYER_TRIALS = 24
"""Halvings of the share that every layer loses, where each layer is ranked on its own."""


class Targeted(Protocol):
    """A config with a target of its own, and perhaps a budget in its place."""

    @property
    def target_neuron_sparsity(self) -> float:
        """Share of the neurons that goes."""
        ...

    @property
    def budget(self) -> Budget | None:
        """What may be left, in place of the target."""
        ...

    def limits(self) -> Limits:
        """The limits of every cut."""
        ...


def reach(view: View, config: Targeted, scores: Tensor, *, way: float = 1.0, ranking: RankingName = "global") -> Found:
    """The neurons with the lowest scores, so many that ``way`` of the way to the target or to the budget is made.

    ``scores`` has one number per class, infinite where it stays. Without a budget see
    ``demp.importance.ranking``; with one the goal is ``dense - way * (dense - budget)`` of every resource,
    and who goes follows from the scores alone.
    """
    if config.budget is None:
        return RANKINGS[ranking](view.state, scores, way * config.target_neuron_sparsity, config.limits())
    goals = goals_at(view.meter, config.budget, way)
    if ranking == "layer":
        return reach_by_layer(view, config, scores, goals)
    rank = scores.double().argsort(stable=True).argsort().double() + 1
    importance = rank.masked_fill(scores == torch.inf, torch.inf)
    found = choose(
        view.meter, view.state.removed, goals, Question(importance=importance, limits=config.limits(), power=0.0)
    )
    notes = tuple(missed(view.meter, goals, view.state.removed | found.chosen) for _ in [0] if found.lack)
    return flags(view.graph, found.chosen), notes


def reach_by_layer(view: View, config: Targeted, scores: Tensor, goals: Mapping[str, float]) -> Found:
    """The smallest share of every layer with which the goals hold."""
    few, many = 0.0, 1.0
    best: dict[str, Tensor] = {}
    for _ in range(LAYER_TRIALS):
        share = (few + many) / 2
        neurons, _ = RANKINGS["layer"](view.state, scores, share, config.limits())
        after = view.state.removed.clone()
        for name, flag in neurons.items():
            after[view.graph.layer(name).classes[flag]] = True
        if view.meter.lack(goals, after):
            few = share
        else:
            many, best = share, neurons
    notes = () if best else (missed(view.meter, goals, view.state.removed),)
    return best, notes


def goals_at(meter: Meter, budget: Budget, way: float) -> dict[str, float]:
    """What may be spent when ``way`` of the way from the dense network to the budget is due."""
    final = meter.goals(budget)
    dense = torch.zeros(meter.graph.classes, dtype=torch.bool)
    return {name: goal + (1 - way) * max(0.0, meter.spent(name, dense) - goal) for name, goal in final.items()}


def missed(meter: Meter, goals: Mapping[str, float], removed: Tensor) -> str:
    """The goals were out of reach."""
    left = ", ".join(f"{share:.3f} of {name}" for name, share in meter.shares(goals, removed).items())
    return f"stopped at {left}: every layer left is at its floor, excluded or refused"


def refuse_two_aims(config: Any, default: float) -> None:
    """A target of one's own beside a budget.

    Raises:
        UsageError: the config has both.
    """
    target = config.target_neuron_sparsity
    if config.budget is not None and target is not None and target != default:
        raise UsageError(
            "budget and target_neuron_sparsity exclude each other; give "
            f"budget=demp.Budget(neurons={1 - target:g}) alone"
        )
