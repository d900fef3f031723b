"""What EarlyCroP-S and EarlySNAP share: train dense, prune at EarlyCroP's moment, go on in the same run.

The originals re-create the optimizer after the cut and train a full schedule on top of the early phase. Here the budget
is one run: optimizer state and schedule go on, as in the DemP paper.

The published moment is in epochs of runs of a published length. In a run of another length an epoch is the same share
of the run (``epoch_of="run"``), so that the moment keeps its place among the other times of the run; with fewer steps
to an epoch the weights move less in it, and the bound, which stays, is met sooner. ``epoch_of="data"`` asks after every
pass over the data, whatever the length of the run: in a run of a few passes the cap mostly decides then.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from demp.errors import UsageError
from demp.files.checks import check_at_least
from demp.methods.base import MethodConfig, Selection, View
from demp.methods.scored import Scored, ScoredConfig
from demp.methods.trigger import Rule, Trigger

EPOCH_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class EarlyConfig(ScoredConfig):
    """When the training has settled enough to prune; the rest is as for pruning before training."""

    trigger: Rule = "paper"
    """``paper``: the weights' distance from the initial ones changes by less than 1 - rho of their norm in an epoch;
    ``repository``: the published code's rule, with its own reference and bound. See ``demp.methods.trigger``."""
    epoch_of: Literal["run", "data"] = "run"
    """At the end of which epochs the rule is asked. ``run``: shares of the run, as many as the published run has epochs
    (the trainer takes them from the recipe), else 1 % of it; ``data``: passes over the data set, which the trainer
    counts; in a loop of your own say ``epoch_steps``."""
    epoch_steps: int | None = None
    """Steps of an epoch, at least 1; None: as ``epoch_of`` says."""
    prune_by: float = 0.5
    """Share of the run after which it prunes in any case. The published code gives up waiting after 100 epochs and
    trains 80 more, about half of its whole run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epoch_steps is not None:
            check_at_least("epoch_steps", self.epoch_steps, 1)
        if not 0 < self.prune_by <= 1:
            raise UsageError(f"prune_by is {self.prune_by}; give a share of the run in (0, 1]")


class Early(Scored):
    """The rounds of a scored method, all at the moment at which the trigger fires.

    Raises:
        UsageError: epochs are passes over the data, and ``epoch_steps`` does not say how many steps one has.
    """

    Config: ClassVar[type[MethodConfig]] = EarlyConfig
    config: EarlyConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: EarlyConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        if config.epoch_of == "data" and config.epoch_steps is None:
            raise UsageError("epoch_of is 'data', and the length of an epoch is not known; give epoch_steps")
        self.epoch_steps = config.epoch_steps or max(1, round(EPOCH_SHARE * total_steps))
        self.cap = max(1, round(config.prune_by * total_steps))
        self.fired: int | None = None
        """The step at which it pruned."""
        self._come = False
        """Has the moment come?"""
        self._why = "the run ended"

    def _aim_at(self, rho: float) -> None:
        super()._aim_at(rho)
        self._trigger = Trigger(self.config.trigger, rho)

    def is_due(self, step: int) -> bool:
        """At epoch ends, the first of which is before training, and at the cap; then until it has pruned."""
        return not self.done and (self._come or step % self.epoch_steps == 0 or step == self.cap)

    def ready(self, step: int, view: View) -> bool:
        """Return whether the moment to prune has come."""
        if self._come:
            return True
        self._settle(view)
        asked = step % self.epoch_steps == 0 and (step > 0 or self.config.trigger == "paper")
        if asked and self._trigger.look(view.parameters()):
            self._come = True
            moved, bound = self._trigger.moved, self._trigger.bound
            self._why = f"weights moved {moved:.3g} of their norm, less than {bound:.3g}"
        elif step >= self.cap:
            self._come = True
            self._why = f"the moment had not come by {self.config.prune_by:g} of the run"
        return self._come

    def select(self, step: int, view: View) -> Selection:
        """One round; the first says why now."""
        if self.done or not (self._come or view.final):
            return Selection()
        first = self._round == 0
        if first:
            self.fired = step
            self._trigger.forget()
        selection = super().select(step, view)
        when = (
            f"pruned at step {step}, after {step / self.epoch_steps:g} epochs of {self.epoch_steps} steps: {self._why}"
        )
        notes = (when, *selection.notes) if first else selection.notes
        return Selection(selection.neurons, exact=False, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """Rounds done, the step of the first, and what the trigger has seen."""
        trigger = self._trigger.state_dict()
        mine = {"fired": self.fired, "come": self._come, "why": self._why, "trigger": trigger}
        return {**super().state_dict(), **mine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the trigger and the moment of pruning from a saved state."""
        super().load_state_dict(state)
        self.fired, self._come, self._why = state["fired"], bool(state["come"]), str(state["why"])
        self._trigger.load_state_dict(state["trigger"])
