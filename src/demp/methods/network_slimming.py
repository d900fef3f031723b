"""Network Slimming, Liu et al. 2017: lasso on normalisation scales, one cut of the smallest, fine-tuning.

Every step up to the last cut:   gradient of the loss + strength * sign(gamma), constant from the first step
At the cut:                      the neurons with the smallest |gamma| of the whole network go
Afterwards:                      fine-tuning without the penalty

The original trains and fine-tunes for 160 epochs each, from scales that start at 0.5 and with a learning rate that
starts anew; here both share one run, in halves by default, the learning rate goes on as it is scheduled, and
the scales start as the model was built. The original prunes pre-activation networks, whose stream stays whole; here a
block's output in a residual stream is ranked by the scale of the block's last norm, and what earlier blocks put on that
channel is cut off with it: give ``exclude`` the layers after the sums to leave them alone. What the shift of a removed
neuron added to its readers is lost, as in the original. A small scale with a large shift does matter and is removed all
the same. The original keeps what is above the percentile even if a layer loses all; here every layer keeps its floor.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.files.checks import check_at_least, check_number
from demp.graph import NeuronGraph, Slot
from demp.graph.neurons import removable_classes
from demp.importance.ranking import RankingName
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.reaching import TargetConfig, reach
from demp.regularization.penalties import Penalty


@dataclass(frozen=True, kw_only=True)
class NetworkSlimmingConfig(TargetConfig):
    """Knobs of Network Slimming, with the names of the paper."""

    target_neuron_sparsity: float = 0.5
    """Share of neurons that go; the paper's percentile of all scales is 40 to 70 %."""
    strength: float = 1e-4
    """lambda, a sum over scales that enters the loss: 1e-4 for VGG, 1e-5 for ResNet and DenseNet."""
    prune_at: float = 0.5
    """Share of the run after which the (last) cut is made and the penalty ends: the original's 160 of 320 epochs."""
    passes: int = 1
    """Cuts, at equal distances up to ``prune_at``; each removes the same share of what is left (the multi-pass scheme,
    there with fine-tuning in between)."""
    ranking: RankingName = "global"
    """``global``: one percentile for the network; ``layer``: the same share of every layer."""
    penalty_on: Literal["scales", "all-scales"] = "scales"
    """``scales``: those that feed removable neurons; ``all-scales``: every normalisation, as in the authors' code."""
    penalty_in: Literal["gradient", "loss"] = "gradient"
    """``gradient``: the sub-gradient is added to .grad right before the optimizer step, as in the authors' code;
    ``loss``: you add ``pruner.penalty_loss()`` to your loss."""
    constants: bool = False
    """Removed neurons leave with their means as constants, where that changes the outputs less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength)
        if not 0 < self.prune_at <= 1:
            raise UsageError(f"prune_at is {self.prune_at}; give a share of the run in (0, 1]")
        check_at_least("passes", self.passes, 1)


class NetworkSlimming(Method):
    """Lasso on normalisation scales, the smallest go at once."""

    name: ClassVar[str] = "network-slimming"
    summary: ClassVar[str] = "lasso on normalisation scales, then the neurons with the smallest scales go at once"
    reference: ClassVar[str] = "Learning Efficient Convolutional Networks through Network Slimming"
    Config: ClassVar[type[MethodConfig]] = NetworkSlimmingConfig
    takes_budget: ClassVar[bool] = True
    config: NetworkSlimmingConfig

    def __init__(self, config: NetworkSlimmingConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        last = config.prune_at * total_steps
        self.cuts = [max(1, round(last * i / config.passes)) for i in range(1, config.passes + 1)]
        self._passed = 0

    def raise_if_unfit(self, graph: NeuronGraph) -> None:
        """Refuse a model without anything to rank.

        Raises:
            UsageError: no neuron that may go has the scale of a normalisation.
        """
        if not bool(ranked(graph).any()):
            raise UsageError(
                "no neuron that may go has a normalisation scale, which network-slimming ranks by; add batch norms, or "
                "choose another method, for example greg-1 or prune-train"
            )

    def requirements(self) -> Requirements:
        """Return how the penalty and the checks are to be carried out."""
        return Requirements(
            penalty_on=self.config.penalty_on,
            penalty_in=self.config.penalty_in,
            collect="batches",
            constants=self.config.constants,
        )

    def penalty(self, step: int) -> Penalty | None:
        """``lambda * sum |gamma|`` until the last cut."""
        return Penalty("lasso", self.config.strength if step < self.cuts[-1] else 0.0, self.config.penalty_on)

    def is_due(self, step: int) -> bool:
        """Return whether a cut is due at this step."""
        return step in self.cuts

    def select(self, step: int, view: View) -> Selection:
        """The smallest scales, down to the target of this pass."""
        passes = self.config.passes
        due = passes if view.final else sum(step >= cut for cut in self.cuts)
        if due <= self._passed:
            return Selection(exact=False)
        self._passed = due
        target = 1 - (1 - self.config.target_neuron_sparsity) ** (due / passes)
        scores = scale_sizes(view)
        way = target / self.config.target_neuron_sparsity
        neurons, notes = reach(view, self.config, scores, way=way, ranking=self.config.ranking)
        unranked = int((removable_classes(view.graph) & ~ranked(view.graph)).sum())
        if unranked:
            notes += (f"{unranked} neurons without a normalisation scale were not ranked",)
        return Selection(neurons, exact=False, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """How many cuts were made so far."""
        return {"passed": self._passed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of cuts that are passed from a saved state."""
        self._passed = int(state["passed"])


def scale_slots(graph: NeuronGraph) -> list[Slot]:
    """The axes of the scales of normalisation layers."""
    scales = {norm.scale for norm in graph.norms}
    return [slot for slot in graph.slots if slot.tensor in scales]


def ranked(graph: NeuronGraph) -> Tensor:
    """Per class: may it go, and does it have a scale?"""
    scaled = graph.none_removed()
    for slot in scale_slots(graph):
        scaled[slot.classes] = True
    return scaled & removable_classes(graph)


def scale_sizes(view: View) -> Tensor:
    """|gamma| per class, the largest where several norms scale a neuron; infinite where none does."""
    parameters, graph = view.parameters(), view.graph
    slots = [slot for slot in scale_slots(graph) if slot.tensor in parameters]
    sizes = torch.full((graph.classes,), -1.0, dtype=torch.float64, device="cpu")
    for slot, classes in zip(slots, view.state.owners(slots), strict=True):
        sizes.scatter_reduce_(0, classes, parameters[slot.tensor].abs().double().cpu(), "amax")
    return torch.where(sizes < 0, math.inf, sizes)
