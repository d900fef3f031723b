"""Demon Pruning (DemP), Algorithm 1 of "Maxwell's Demon at Work".

For t = 0 to T:
    gradient of the loss                                             your training loop
    + gradient of R(gamma; lambda_t), on normalisation scales only   ``penalty``
    optimizer step; + xi ~ N(0, sigma_t^2) on live neurons only      ``after_step``
    every tau steps: remove dead neurons                             ``is_due`` and ``select``
"""

import math
from typing import Any, ClassVar

from torch import Tensor

from demp.activity import Criterion
from demp.errors import UsageError
from demp.graph import NeuronGraph
from demp.methods.advice import Advice
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.course import Course
from demp.methods.demp_config import DemPConfig
from demp.methods.revival import Revival
from demp.methods.target import NeuronTarget
from demp.regularization import Shrink, schedules
from demp.regularization.noise import Noise
from demp.regularization.penalties import Penalty

NEGLIGIBLE = 1e-12
"""A scheduled value below this is zero (gap 7)."""
PERIOD_SHARE = 0.05


class DemonPruning(Method):
    """Lasso on normalisation scales, noise on live neurons, removal of the dead."""

    name: ClassVar[str] = "demp"
    summary: ClassVar[str] = "one-cycle lasso on normalisation scales, noise on live neurons, dead ones are removed"
    reference: ClassVar[str] = "Maxwell's Demon at Work: Efficient Pruning by Leveraging Saturation of Neurons"
    Config: ClassVar[type[MethodConfig]] = DemPConfig
    config: DemPConfig
    takes_budget: ClassVar[bool] = True

    def __init__(self, config: DemPConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.period = config.period or max(1, round(PERIOD_SHARE * total_steps))
        names = (config.schedule, config.noise_schedule or config.schedule)
        self._strength, self._noise = (schedules.make(n, span=config.span, peak_at=config.peak_at) for n in names)
        decoupled = config.penalty_in == "decoupled"
        self._way = sum(self._strength(step, total_steps) for step in range(total_steps if decoupled else 0))
        """Of the decoupled penalty over the whole run, in units of its peak."""
        self._target = NeuronTarget(config.target_neuron_sparsity or 0.0, config.target_growth)
        self._advice, self._revival = Advice(config.peak_strength, config.limits()), Revival()
        phase = config.phase()
        self._course = None if phase is None else Course(phase, total_steps)

    def raise_if_unfit(self, graph: NeuronGraph) -> None:
        """Refuse the decoupled penalty, which acts on scales alone, where there are none.

        Raises:
            UsageError: no normalisation has a scale.
        """
        if self.config.penalty_in == "decoupled" and not any(norm.scale for norm in graph.norms):
            raise UsageError(
                "penalty_in='decoupled' needs normalisations with a scale, and there are none; use 'gradient'"
            )

    def strength(self, step: int) -> float:
        """lambda_t; 0 with a budget, on the way to which neurons fade instead."""
        if self._course is not None:
            return 0.0
        value = self._target.growth * self.config.peak_strength * self._strength(step, self.total_steps)
        return 0.0 if self._target.met or value < NEGLIGIBLE else value

    def noise_std(self, step: int) -> float:
        """sigma_t; 0 with a budget, since noise is there to make neurons die."""
        if self.config.noise_on == "off" or self._target.met or self._course is not None:
            return 0.0
        value = self.config.peak_noise_std * self._noise(step, self.total_steps)
        return 0.0 if value < NEGLIGIBLE else math.sqrt(value) if self.config.noise_is_variance else value

    def criterion(self) -> Criterion:
        """Return the criterion of death that the config describes."""
        return Criterion(kind=self.config.criterion, eps=self.config.eps, relative=self.config.eps_relative)

    def requirements(self) -> Requirements:
        """Return how penalty, noise and checks are to be carried out."""
        return Requirements(
            penalty_on=self.config.penalty_on if self._course is None else "nothing",
            penalty_in=self.config.penalty_in,
            live_mask=self.config.live_mask if self.config.noise_on == "live" else "none",
            noise_weights_only=self.config.noise_weights_only,
            noise_others=self.config.noise_others,
            collect=self.config.collect if self._course is None else "batches",
            window_steps=self.config.window_steps,
            constants=self.config.fold,
            max_drift=self.config.max_drift,
        )

    def penalty(self, step: int) -> Penalty | None:
        """R(gamma_t; lambda_t); none with a budget."""
        if self._course is not None:
            return None
        return Penalty(self.config.penalty, self.strength(step), self.config.penalty_on)

    def after_step(self, step: int) -> Noise | None:
        """The noise of this step, xi ~ N(0, sigma_t^2); None where sigma_t is 0."""
        std = self.noise_std(step)
        return Noise(std, self.config.noise_times_lr) if std else None

    def is_due(self, step: int) -> bool:
        """t % tau = 0, once pruning has begun; with a budget at the marks of its course."""
        if self._course is not None:
            return self._course.is_due(step)
        if not self.config.dynamic or step < max(1, self.config.prune_after or 0):
            return False
        return step % self.period == 0 or (step == 1 and self.config.prune_at_start)

    def watches(self, step: int) -> bool:
        """On the way to a budget, now and then."""
        return self._course is not None and self._course.watches(step)

    def watch(self, sensitivity: Tensor) -> None:
        """Pass the sensitivity of each class to the course towards the budget."""
        assert self._course is not None
        self._course.watch(sensitivity)

    def looks(self, step: int) -> bool:
        """On the way to a budget, where the next neurons are chosen."""
        return self._course is not None and self._course.looks(step)

    def shrink(self, step: int) -> Shrink | None:
        """The fading of those that go next; without a budget the decoupled penalty, if it is that."""
        if self._course is not None:
            return self._course.shrink(step)
        strength = self.strength(step) if self.config.penalty_in == "decoupled" else 0.0
        by_rate = self.config.penalty_times_lr
        return Shrink(amounts=strength / (1.0 if by_rate else self._way), times_lr=by_rate) if strength > 0 else None

    def select(self, step: int, view: View) -> Selection:
        """The dead; with a target, no more of them than it asks for; with a budget, those that have faded."""
        if self._course is not None:
            return self._course.select(step, view)
        if self.config.prune_after is None:
            wait = self._revival.wait(view.graph, view.detect().dead, step / self.total_steps)
            if wait:
                return Selection(notes=(wait,))
        if self.config.target_neuron_sparsity is None:
            detection = view.detect()
            return Selection(detection.dead, advice=self._advice.about(step, view, detection))
        past_peak = step >= self.config.peak_at * self.config.span * self.total_steps
        return self._target.select(view, self.config.limits(), past_peak=past_peak)

    def unfinished(self, step: int) -> str:
        """The way to the budget, or the peak of the schedule."""
        if self._course is not None:
            return self._course.unfinished(step)
        peak = math.ceil(self._strength.peak_share * self._strength.span * self.total_steps)
        if step > peak:
            return ""
        never = f"the schedule never peaked (at step {peak:,}, strength {self.config.peak_strength:g})"
        return f"{never}; at the end the strength was {self.strength(step):.2g}"

    def state_dict(self) -> dict[str, Any]:
        """The controller's state; schedules and noise are functions of the step."""
        course = None if self._course is None else self._course.state_dict()
        own = {"advised": self._advice.given, "revival": self._revival.state_dict(), "course": course}
        return {**self._target.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the strength's growth, the target and the course from a saved state."""
        self._target.load_state_dict(state)
        self._advice.given = bool(state.get("advised", False))
        self._revival.load_state_dict(state.get("revival", Revival().state_dict()))
        if self._course is not None and state.get("course") is not None:
            self._course.load_state_dict(state["course"])
