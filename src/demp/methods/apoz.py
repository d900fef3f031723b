"""APoZ: the neurons whose outputs are most often zero go, in rounds, with training in between (Hu et al. 2016).

    APoZ_j = share of zeros among the outputs of neuron j, over examples and positions

The original starts from a trained network and alternates: in each round the neurons of chosen layers go whose APoZ
exceeds the mean of the layer by more than its standard deviation (``rule="deviation"``), then the rest is fine-tuned.
Here the budget is one run, so that rounds lie evenly in its middle, and with ``rule="target"`` all layers share one
ranking down to a target, a fair share of it in every round.

Zeros are counted in what the readers of a neuron see. A pooling in between hides some: behind a global average a neuron
is zero only where all its positions are, so that such a layer goes last in a global ranking. An activation that is
never exactly zero (GELU, SiLU) has APoZ 0 and gives no ranking; the report says so.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.files.checks import check_at_least
from demp.graph import GraphState
from demp.importance.ranking import RANKINGS, RankingName
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.reaching import TargetConfig, reach

NO_ZEROS = "no output is exactly zero, so that APoZ ranks no neuron: with this activation choose another method"


@dataclass(frozen=True, kw_only=True)
class ApozConfig(TargetConfig):
    """How many neurons go, in which rounds of the run, and on how many batches their zeros are counted."""

    target_neuron_sparsity: float = 0.5
    """Share of all neurons that is removed after the last round; with ``deviation`` at most."""
    rule: Literal["target", "deviation"] = "target"
    """``target``: the highest APoZ goes, the same number in every round; ``deviation``: as in the paper, what exceeds
    the mean of its layer by more than one standard deviation."""
    ranking: RankingName = "global"
    """``global``: one ranking over the network; ``layer``: the target in every layer."""
    scoring_batches: int = 10
    """Training batches behind each APoZ."""
    rounds: int = 5
    """Cuts, evenly from ``prune_from`` to ``prune_to``."""
    prune_from: float = 0.3
    """Share of the run at the first cut."""
    prune_to: float = 0.8
    """Share of the run at the last cut; what follows is fine-tuning. From 0.3 to 0.8 of a run the gradual methods of
    the DemP paper prune, too."""
    constants: bool = False
    """Removed neurons leave with their means as constants, where that changes the outputs less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and self.rule != "target":
            raise UsageError(f"a budget needs rule='target'; with {self.rule!r} the rule itself says how many go")
        check_at_least("scoring_batches", self.scoring_batches, 1)
        check_at_least("rounds", self.rounds, 1)
        if not 0 <= self.prune_from <= self.prune_to <= 1:
            raise UsageError(
                f"prune_from is {self.prune_from} and prune_to is {self.prune_to}; "
                "give shares of the run in [0, 1], in this order"
            )


class Apoz(Method):
    """Rounds over the run; in each the neurons that are zero most often go."""

    name: ClassVar[str] = "apoz"
    summary: ClassVar[str] = "in rounds, the neurons whose outputs are most often zero go"
    reference: ClassVar[str] = "Network Trimming: A Data-Driven Neuron Pruning Approach (Hu et al. 2016)"
    Config: ClassVar[type[MethodConfig]] = ApozConfig
    takes_budget: ClassVar[bool] = True
    config: ApozConfig

    def __init__(self, config: ApozConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        step_of = (config.prune_to - config.prune_from) / max(1, config.rounds - 1)
        self.moments = tuple(round((config.prune_from + i * step_of) * total_steps) for i in range(config.rounds))
        self._done = 0

    def requirements(self) -> Requirements:
        """Batches to look at activations on."""
        return Requirements(zeros=True, constants=self.config.constants)

    def is_due(self, step: int) -> bool:
        """Return whether a pruning round is due at this step."""
        return step in self.moments

    def select(self, step: int, view: View) -> Selection:
        """The rounds that are due by now, as one."""
        now = self.config.rounds if view.final else sum(moment <= step for moment in self.moments)
        if now <= self._done:
            return Selection()
        self._done = now
        config, graph = self.config, view.graph
        apoz = view.zeros(config.scoring_batches)
        if not bool(apoz[live(view.state)].any()):
            return Selection(notes=(NO_ZEROS,))
        rank, target = RANKINGS[config.ranking], config.target_neuron_sparsity
        if config.rule == "target":
            neurons, notes = reach(view, config, -apoz, way=now / config.rounds, ranking=config.ranking)
            return Selection(neurons, exact=False, notes=notes)
        above = exceeding(view.state, apoz)
        neurons, _ = rank(view.state, torch.where(above, -1 - apoz, -apoz), target, config.limits())
        return Selection(
            {name: flags & above[graph.layer(name).classes] for name, flags in neurons.items()}, exact=False
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds that are done."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of done rounds from a saved state."""
        self._done = int(state["done"])


def live(state: GraphState) -> Tensor:
    """Per class: a neuron that is there and may go."""
    found = state.graph.none_removed()
    for layer in state.graph.layers:
        found[layer.classes[layer.removable]] = True
    return found & ~state.removed


def exceeding(state: GraphState, apoz: Tensor) -> Tensor:
    """Per class: above the mean of its layer by more than the standard deviation; in every layer that carries it."""
    found = live(state)
    for layer in state.graph.layers:
        here = layer.classes[~state.removed[layer.classes]]
        high = apoz[here] > apoz[here].mean() + apoz[here].std(correction=0)
        found[here] &= high
    return found
