"""How a method with a target removes the lowest of a ranking: down to a share of the neurons, or to a budget."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from demp.budgets import Budget, Meter, Question, choose
from demp.errors import UsageError
from demp.files.checks import check_share
from demp.importance.ranking import RANKINGS, Found, RankingName, flags
from demp.methods.base import MethodConfig, View

LAYER_TRIALS = 24
"""Halvings of the share that every layer loses, where each layer is ranked on its own."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig(MethodConfig):
    """Knobs of a method that removes a share of the neurons, or with a budget as many as that asks for."""

    target_neuron_sparsity: float = 0.5
    """Share of all neurons that is removed in the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("target_neuron_sparsity", self.target_neuron_sparsity)
        raise_if_two_aims(self)


def reach(
    view: View, config: TargetConfig, scores: Tensor, *, way: float = 1.0, ranking: RankingName = "global"
) -> Found:
    """The neurons with the lowest scores, so many that ``way`` of the way to the target or to the budget is made.

    ``scores`` has one number per class, infinite where it stays. Without a budget see
    ``demp.importance.ranking``; with one the goal is ``dense - way * (dense - budget)`` of every resource,
    and what goes follows from the scores alone.
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


def reach_by_layer(view: View, config: TargetConfig, scores: Tensor, goals: Mapping[str, float]) -> Found:
    """The lowest scores of every layer, the smallest share of each with which the goals hold."""
    _, best = smallest_share(view, config, scores, goals)
    notes = () if best else (missed(view.meter, goals, view.state.removed),)
    return best, notes


def neuron_sparsity_of(view: View, config: TargetConfig, budget: Budget) -> float:
    """The neuron sparsity that a budget stands for, where a method needs one: what every layer must lose alike.

    For a network that is dense: 0.29 for half of the FLOPs of equally wide layers, since FLOPs go with its square.
    """
    scores = torch.arange(view.graph.classes, dtype=torch.float64, device="cpu")
    return smallest_share(view, config, scores, view.meter.goals(budget))[0]


def smallest_share(
    view: View, config: TargetConfig, scores: Tensor, goals: Mapping[str, float]
) -> tuple[float, dict[str, Tensor]]:
    """The smallest share of every layer with which the goals hold, and the neurons; (1, {}) if they never do."""
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
    return many, best


def goals_at(meter: Meter, budget: Budget, way: float) -> dict[str, float]:
    """What may be spent when ``way`` of the way from the dense network to the budget is due."""
    final = meter.goals(budget)
    dense = torch.zeros(meter.graph.classes, dtype=torch.bool, device="cpu")
    return {name: goal + (1 - way) * max(0.0, meter.spent(name, dense) - goal) for name, goal in final.items()}


def missed(meter: Meter, goals: Mapping[str, float], removed: Tensor) -> str:
    """The goals were out of reach."""
    left = ", ".join(f"{share:.3f} of {name}" for name, share in meter.shares(goals, removed).items())
    return f"stopped at {left}: every layer left is at its floor, excluded or refused"


def raise_if_two_aims(config: Any) -> None:
    """Refuse a target of one's own beside a budget; the default of its class does not count as one's own.

    Raises:
        UsageError: the config has both.
    """
    target = config.target_neuron_sparsity
    (default,) = (entry.default for entry in fields(config) if entry.name == "target_neuron_sparsity")
    if config.budget is not None and target is not None and target != default:
        raise UsageError(
            "budget and target_neuron_sparsity exclude each other; give "
            f"budget=demp.Budget(neurons={1 - target:g}) alone"
        )
