"""What GReg-1 and GReg-2 share: phases, growing factors, the pick by magnitude."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.files.checks import check_above, check_at_least, check_portion
from demp.graph import NeuronGraph
from demp.graph.neurons import making_slots, removable_classes
from demp.importance.ranking import RankingName, flags
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.reaching import TargetConfig, reach
from demp.regularization.penalties import Penalty
from demp.surgery import Limits, plan_cut


@dataclass(frozen=True, kw_only=True)
class GrowingConfig(TargetConfig):
    """Knobs of both; phases are shares of the run and follow one another, the rest of the run fine-tunes."""

    ranking: RankingName = "layer"
    """``layer``: this share of every layer, as the paper's given ratios; ``global``: of the network, by the mean size
    of a neuron's weights."""
    start_at: float = 0.25
    """Share of the run that trains without penalty first, in place of the pretrained network; 0: none, where the first
    ranking is of weights as they were drawn."""
    grow: float = 0.4
    """Share of the run in which the factors grow up to ``ceiling``."""
    stabilise: float = 0.05
    """Share of the run in which they stay there, before the cut."""
    delta: float = 1e-4
    """delta lambda: growth of the factor per update."""
    ceiling: float = 1.0
    """tau: where the factor stops."""
    update_every: int | None = None
    """K_u: steps between updates, which then sets how long the factors grow in place of the shares; 10 on CIFAR, 5 on
    ImageNet (100,000 and 50,000 steps)."""
    stabilise_steps: int | None = None
    """Steps in place of ``stabilise``; 5,000 on CIFAR, 40,000 on ImageNet."""
    penalty_in: Literal["gradient", "loss"] = "gradient"
    """``gradient``: added to .grad right before the optimizer step, as in the authors' code; ``loss``: you add
    ``pruner.penalty_loss()`` to your loss."""
    constants: bool = False
    """Removed neurons leave with their means as constants, where that changes the outputs less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_at", "stabilise", "grow"):
            check_portion(name, getattr(self, name), "a share of the run")
        for name in ("delta", "ceiling"):
            check_above(name, getattr(self, name))
        if self.update_every is not None:
            check_at_least("update_every", self.update_every, 1)
        if self.stabilise_steps is not None:
            check_at_least("stabilise_steps", self.stabilise_steps, 0)


@dataclass(frozen=True)
class Ramp:
    """A factor that grows from ``base`` to ``ceiling`` by ``delta`` per update; its updates fill the steps evenly."""

    start: int
    end: int
    base: float
    delta: float
    ceiling: float

    @property
    def updates(self) -> int:
        """Return the number of updates until the factor reaches the ceiling."""
        return math.ceil(round((self.ceiling - self.base) / self.delta, 6))

    def at(self, step: int) -> float:
        """The factor that acts in this step; the first update comes before the first step of the phase."""
        if step < self.start:
            return self.base
        if step >= self.end:
            return self.ceiling
        done = min(self.updates, (step - self.start) * self.updates // (self.end - self.start) + 1)
        return min(self.ceiling, self.base + self.delta * done)


class GrowingRegularisation(Method):
    """An L2 factor per neuron that grows until the neuron's weights are nearly zero, then the neuron is removed.

    Raises:
        UsageError: the phases take more than the run has.
    """

    Config: ClassVar[type[MethodConfig]] = GrowingConfig
    takes_budget: ClassVar[bool] = True
    kept_factor: float = 0.0
    """Factor of what was not picked."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Lengths of the ramps, as shares of the run."""
        return (self.config.grow,)

    def __init__(self, config: GrowingConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.ramps = self.phases()
        shares = (config.start_at, *self.shares, config.stabilise)
        if config.update_every is None and config.stabilise_steps is None and sum(shares) > 1 + 1e-9:
            raise UsageError(
                f"the phases take {sum(shares):g} of the run; lower start_at, grow or stabilise so that they fit"
            )
        stabilise = self._steps(config.stabilise) if config.stabilise_steps is None else config.stabilise_steps
        self.pick_at, self.cut_at = self.ramps[-1].start, self.ramps[-1].end + stabilise
        if config.stabilise_steps is None and config.update_every is None:
            self.cut_at = min(self.cut_at, total_steps)  # every boundary is rounded
        if self.cut_at > total_steps:
            raise UsageError(
                f"the neurons would go after {self.cut_at} of {total_steps} steps; lower update_every, stabilise_steps "
                "or start_at, or train longer"
            )
        self._pushed: Tensor | None = None
        self._kept: Tensor | None = None
        self._picked = self._done = False

    def phases(self) -> tuple[Ramp, ...]:
        """The ramps, one after the other; the pick comes before the last one."""
        raise NotImplementedError

    def _steps(self, share: float) -> int:
        return round(share * self.total_steps)

    def ramp(self, start: int, share_before: float, share: float, base: float, delta: float, ceiling: float) -> Ramp:
        """One phase: as long as its share of the run, or as its updates take."""
        shape = Ramp(start, start, base, delta, ceiling)
        every = self.config.update_every
        end = self._steps(share_before + share) if every is None else start + every * shape.updates
        return Ramp(start, end, base, delta, ceiling)

    def raise_if_unfit(self, graph: NeuronGraph) -> None:
        """Refuse a model without anything to push.

        Raises:
            UsageError: no weight makes a neuron that may go.
        """
        if not bool(pushable(graph, self.config.limits()).any()):
            raise UsageError(f"{self.name} pushes the weights that make neurons, and none here makes one that may go")

    def requirements(self) -> Requirements:
        """Return how the penalty and the checks are to be carried out."""
        return Requirements(
            penalty_on="producers",
            penalty_in=self.config.penalty_in,
            collect="batches",
            constants=self.config.constants,
        )

    def strength(self, step: int) -> float:
        """Factor of the neurons that are pushed."""
        if self._pushed is None or self._done:
            return 0.0
        return self.ramps[-1].at(step) if self._picked else self.ramps[0].at(step)

    def penalty(self, step: int) -> Penalty | None:
        """``sum_c lambda_c / 2 * ||W_c||^2``."""
        strength = self.strength(step)
        if self._pushed is None or strength == 0:
            return Penalty("l2", 0.0, "producers")
        factors = self._pushed.double()
        if self._kept is not None:
            factors = factors + self._kept.double() * (self.kept_factor / strength)
        return Penalty("l2", strength, "producers", factors)

    def is_due(self, step: int) -> bool:
        """Where phases begin, and at the cut."""
        return step in (self.ramps[0].start, self.pick_at, self.cut_at)

    def select(self, step: int, view: View) -> Selection:
        """None at the start of a phase, where it is settled which are pushed; at the cut those that were picked."""
        limits, notes = self.config.limits(), ()
        if not self._picked:
            self._pushed = pushable(view.graph, limits)
            if step >= self.pick_at or view.final:
                notes = self._pick(view, limits)
        if self._done or not (step >= self.cut_at or view.final):
            return Selection(exact=False, notes=notes)
        self._done = True
        assert self._pushed is not None
        return Selection(flags(view.graph, self._pushed & ~view.state.removed), exact=False, notes=notes)

    def _pick(self, view: View, limits: Limits) -> tuple[str, ...]:
        """From now on only the smallest are pushed."""
        assert self._pushed is not None
        chosen, notes = reach(view, self.config, sizes(view), ranking=self.config.ranking)
        picked = plan_cut(view.state, chosen, limits).removes
        self._kept, self._pushed, self._picked = self._pushed & ~picked, picked, True
        return notes

    def state_dict(self) -> dict[str, Any]:
        """Which neurons are pushed, and how far the phases are; the factors are functions of the step."""
        return {"pushed": self._pushed, "kept": self._kept, "picked": self._picked, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the pushed and the kept neurons from a saved state."""
        self._pushed, self._kept = state["pushed"], state["kept"]
        self._picked, self._done = bool(state["picked"]), bool(state["done"])


def pushable(graph: NeuronGraph, limits: Limits) -> Tensor:
    """Per class: it may go, and weights make it."""
    made = graph.none_removed()
    for slot in making_slots(graph):
        made[slot.classes] = True
    made &= removable_classes(graph) & (graph.voters() > 0)
    for layer in graph.layers:
        if not limits.allows(layer.name):
            made[layer.classes] = False
    return made


def sizes(view: View) -> Tensor:
    """Mean |w| per class over all weights that make it; infinite where none does.

    Within a layer this is the order of L1 norms.
    """
    parameters, graph = view.parameters(), view.graph
    slots = [slot for slot in making_slots(graph) if slot.tensor in parameters]
    total = torch.zeros(graph.classes, dtype=torch.float64, device="cpu")
    count = torch.zeros_like(total)
    for slot, classes in zip(slots, view.state.owners(slots), strict=True):
        weight = parameters[slot.tensor].abs().movedim(slot.axis, 0).flatten(1).double().cpu()
        total.index_add_(0, classes, weight.sum(1))
        count.index_add_(0, classes, torch.full((len(classes),), weight.shape[1], dtype=torch.float64, device="cpu"))
    return torch.where(count > 0, total / count.clamp(min=1), math.inf)
