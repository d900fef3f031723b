"""PruneTrain, Lym et al. 2019: group lasso on channels from the first step, those that became small go periodically.

Every step:          gradient of the loss + strength * w / ||w_g||, for every input and output channel g of every weight
Every ``period``:    a channel goes once all weights that make it and all that read it are below ``threshold``

One strength serves all groups, whatever their size, so that large ones shrink no faster than small ones. Inputs of the
first layer and outputs of the last one are no groups; nor are depthwise convolutions, as in the authors' code. To grow
the batch as memory becomes free, as the paper does, is left to the training loop. The paper keeps, among layers that
share a residual stream, the union of their channels: ``joins=False``. By default each block output goes by its own
weights, and goes only if the later sums that it would enter lose the channel too, so that nothing that matters is cut
off; more can go than with the union. A layer whose channels are all small keeps its floor.

A penalised weight comes to rest within about learning rate * strength of zero, with Adam within the learning rate:
``threshold`` is meant for SGD, with Adam choose it above the learning rate at the end of the run.

It is also meant for long runs. Weights before a batch norm can all shrink together and the outputs stay, so that a
short run with a larger ``penalty_share`` loses the network before any weight is near 1e-4: raise ``threshold`` as well,
and see docs/numbers.md for values that worked in 800 steps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.files.checks import check_at_least, check_number, check_share
from demp.graph import GraphState
from demp.graph.neurons import channel_slots
from demp.importance.ranking import flags
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.regularization.penalties import Penalty, slice_value
from demp.regularization.slices import Slices
from demp.surgery import plan_cut

PERIOD_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class PruneTrainConfig(MethodConfig):
    """Knobs of PruneTrain, with the names of the paper."""

    penalty_share: float = 0.2
    """Share of the penalty in loss + penalty at the start, which sets the strength; 0.2 to 0.25 in the paper. The loss
    is that of a training batch before the first step, so that ``loss_fn`` and ``batches`` are needed."""
    strength: float | None = None
    """lambda, the coefficient of the group lasso, in place of ``penalty_share``."""
    threshold: float = 1e-4
    """A weight whose size is below this counts as zero."""
    period: int | None = None
    """Steps between removals, the reconfiguration interval; None: 5 % of the run, at least 1 (the paper: about 10 of
    182 epochs)."""
    penalty_in: Literal["gradient", "loss"] = "gradient"
    """``gradient``: added to .grad right before the optimizer step; ``loss``: you add ``pruner.penalty_loss()`` to your
    loss, as in the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("penalty_share", self.penalty_share)
        if self.strength is not None:
            check_number("strength", self.strength)
        check_number("threshold", self.threshold)
        if self.period is not None:
            check_at_least("period", self.period, 1)


class PruneTrain(Method):
    """Group lasso on input and output channels, those without weight go."""

    name: ClassVar[str] = "prune-train"
    summary: ClassVar[str] = "group lasso on input and output channels, those whose weights are all small go"
    reference: ClassVar[str] = "PruneTrain: Fast Neural Network Training by Dynamic Sparse Model Reconfiguration"
    Config: ClassVar[type[MethodConfig]] = PruneTrainConfig
    config: PruneTrainConfig

    def __init__(self, config: PruneTrainConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.period = config.period or max(1, round(PERIOD_SHARE * total_steps))
        self._strength = config.strength

    def requirements(self) -> Requirements:
        """Return how the penalty and the checks are to be carried out."""
        scores = self.config.strength is None
        return Requirements(penalty_on="channels", penalty_in=self.config.penalty_in, collect="batches", scores=scores)

    def penalty(self, step: int) -> Penalty | None:
        """Return the group lasso on channels, ``lambda * sum_g ||W_g||``."""
        return Penalty("group-lasso", self._strength or 0.0, "channels")

    def is_due(self, step: int) -> bool:
        """Before training, to measure the loss; then every period."""
        return step % self.period == 0 if step else self._strength is None

    def select(self, step: int, view: View) -> Selection:
        """Select none before training, where the strength is set; then the channels whose weights are all small."""
        if self._strength is None:
            self._strength = strength_for(self.config.penalty_share, view)
            note = f"strength {self._strength:.4g}: the penalty is {self.config.penalty_share:g} of loss + penalty"
            return Selection(exact=False, notes=(note,))
        limits, graph = self.config.limits(), view.graph
        going = wanted = small(view, self.config.threshold)
        while True:  # what a floor keeps, the sums before it must keep as well
            planned = plan_cut(view.state, flags(graph, going), limits).removes
            carried = unread(view.state, planned)
            if torch.equal(carried, going):
                break
            going = carried
        stay = int((wanted & ~going).sum())
        notes = (
            (f"{stay} small channels stay: excluded, for the minimum width, or carried on by a sum",) if stay else ()
        )
        return Selection(flags(graph, going), exact=False, notes=notes)

    def nothing_removed(self) -> str:
        """A sentence for the report: no slice was below the threshold."""
        return (
            f"nothing was removed: no channel had all of its weights below the threshold of {self.config.threshold:g}; "
            "raise threshold or penalty_share (with Adam the threshold lies above the last learning rate), or give a "
            "method with a target, for example demp with a budget"
        )

    def state_dict(self) -> dict[str, Any]:
        """The strength, once it is set."""
        return {"strength": self._strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the penalty's strength from a saved state."""
        self._strength = state["strength"]


def strength_for(share: float, view: View) -> float:
    """``share * loss / ((1 - share) * sum_g ||W_g||)``, at which the penalty is this share of loss + penalty.

    Raises:
        UsageError: the loss is not positive, or all weights are zero.
    """
    parameters, slots = view.parameters(), channel_slots(view.graph)
    named = [(parameters[slot.tensor], slot) for slot in slots if slot.tensor in parameters]
    classes = view.state.owners(slot for _, slot in named)
    slices = [
        Slices(nn.Parameter(weight, False), slot.axis, c) for (weight, slot), c in zip(named, classes, strict=True)
    ]
    norms, loss = float(slice_value(slices, Penalty("group-lasso", 1.0, "channels"))), view.loss(1)
    if not (norms > 0 and 0 < loss < float("inf")):
        raise UsageError(
            f"penalty_share needs a positive loss and weights that are not zero, but at the start the loss is {loss:g} "
            f"and the sum of norms {norms:g}; give strength instead"
        )
    return share * loss / ((1 - share) * norms)


def small(view: View, threshold: float) -> Tensor:
    """Per class: all weights that make or read it are smaller than the threshold."""
    parameters, graph = view.parameters(), view.graph
    slots = [slot for slot in channel_slots(graph) if slot.tensor in parameters]
    largest = torch.full((graph.classes,), -1.0, dtype=torch.float64, device="cpu")
    for slot, classes in zip(slots, view.state.owners(slots), strict=True):
        weight = parameters[slot.tensor].abs().movedim(slot.axis, 0).flatten(1)
        largest.scatter_reduce_(0, classes, weight.amax(1).double().cpu(), "amax")
    found = (largest >= 0) & (largest < threshold) & ~view.state.removed
    found[0] = False
    return found


def unread(state: GraphState, going: Tensor) -> Tensor:
    """Of those that are to go, the ones that no residual sum carries on to a channel that stays."""
    graph, going = state.graph, going.clone()
    for _ in range(len(graph.joins) + 1):
        before = going.clone()
        for join in graph.joins:
            reaches = join.branch[join.target]
            going[join.stream[join.source][~(going | state.removed)[reaches]]] = False
        if torch.equal(before, going):
            break
    return going
