"""How long a run is: what is pushed until its planned end, what a longer or shorter plan means on resume."""

import logging
from typing import Any

from demp.errors import UsageError
from demp.methods.base import Method
from demp.methods.masks import MaskMethod
from demp.parallel import ranks
from demp.regularization import Shrink
from demp.regularization.noise import Noise
from demp.regularization.penalties import Penalty

logger = logging.getLogger("demp")


class Pushes:
    """What a method adds to training, until ``total_steps`` steps are done.

    A run may go on after that: then nothing is pushed and no mask changes, and the dead still go at the checks.
    """

    def __init__(self, method: Method, total_steps: int) -> None:
        self._method, self._total_steps = method, total_steps
        self._logged = False

    def over(self, step: int) -> bool:
        """Is the planned run over after ``step`` steps?"""
        return step >= self._total_steps

    def say_past(self, step: int, group: ranks.Group) -> None:
        """Once, when a step beyond the plan begins."""
        if self.over(step) and not self._logged:
            self._logged = True
            if ranks.is_main_process(group):
                logger.warning(
                    "training goes on after the total_steps of %d: nothing is pushed any more, and neurons that are "
                    "dead still go at the checks",
                    self._total_steps,
                )

    def penalty(self, step: int) -> Penalty | None:
        """Return the method's penalty, None after the planned end."""
        return None if self.over(step) else self._method.penalty(step)

    def noise(self, step: int) -> Noise | None:
        """Return the method's noise, None after the planned end."""
        return None if self.over(step) else self._method.after_step(step)

    def shrink(self, step: int) -> Shrink | None:
        """Return how the method shrinks scales, None after the planned end."""
        return None if self.over(step) else self._method.shrink(step)

    def watches(self, step: int) -> bool:
        """Return whether the method needs the sensitivity at this step."""
        return not self.over(step) and self._method.watches(step)

    def masks_due(self, step: int, method: MaskMethod) -> bool:
        """Return whether masks change at this step, never after the planned end."""
        return not self.over(step) and method.masks_due(step)


def compare_plans(state: dict[str, Any], name: str, total_steps: int, group: ranks.Group) -> bool:
    """Is a saved run as long as this one? Another length is logged: schedules follow the new one from here on.

    Raises:
        UsageError: the saved run is of another method.
    """
    if state["method"] != name:
        raise UsageError(
            f"the saved run has method {state['method']!r}, this pruner {name!r}; build it with the method of the run"
        )
    return same_plan(int(state["total_steps"]), total_steps, int(state["step"]), group)


def same_plan(before: int, now: int, step: int, group: ranks.Group) -> bool:
    """Is a run as long as it was planned? If not, a line says what that means."""
    if before != now and ranks.is_main_process(group):
        logger.warning(
            "the saved run was planned for %d steps, this one for %d: from step %d on all schedules are those of %d",
            *(before, now, step, now),
        )
    return before == now
