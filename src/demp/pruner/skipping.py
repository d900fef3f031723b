"""What becomes of a cut that cannot be made at its moment: it is skipped with a message, and tried again."""

import logging
import re
from typing import Any

from demp.errors import DempError, UsageError
from demp.parallel import ElsewhereError
from demp.pruner.model import ShrinkingModel, StillWaitingError
from demp.surgery import CutReport

logger = logging.getLogger("demp")
SKIPPED = "skipped: "
"""How the report of a skipped check begins its note."""
RETRIES = 100
"""A check that was skipped is made again after one in so many steps of the run, if no other check comes before."""
POLICIES = ("skip", "raise")


class Skips:
    """The checks of one run whose cut was skipped, and when the next is due."""

    def __init__(self, on_error: str, total_steps: int) -> None:
        if on_error not in POLICIES:
            raise UsageError(f"on_error is {on_error!r}; give 'skip' (training goes on) or 'raise'")
        self._skips, self.total_steps = on_error == "skip", total_steps
        self.steps: list[int] = []
        """Of all checks that were skipped."""
        self._reason = ""
        self._logged: set[str] = set()
        self._retry: int | None = None

    def covers(self, error: DempError) -> bool:
        """Is the check to be skipped for this error? Errors that are not demp's own, on whichever rank, are not."""
        if isinstance(error, StillWaitingError) or (isinstance(error, ElsewhereError) and error.fault):
            return False
        return self._skips

    def is_due(self, step: int) -> bool:
        """Is it time to try again?"""
        return step == self._retry

    def skip(self, shrinking: ShrinkingModel, step: int, error: DempError, *, finishing: bool) -> CutReport:
        """Report that the check at this step was skipped, with a warning where the reason is new.

        Raises:
            DempError: the error itself, where it is not to be skipped.
        """
        if not self.covers(error):
            raise error
        self.steps.append(step)
        self._reason = f"{error}"
        self._retry = step + max(1, self.total_steps // RETRIES)
        if shrinking.context.is_main_process:
            later = "" if finishing else "; training goes on, and the cut is tried again"
            logger.log(self._level(), "cut at step %d skipped: %s%s", step, self._reason, later)
        return shrinking.skip(step, f"{SKIPPED}{self._reason}")

    def _level(self) -> int:
        """Of the last reason: a warning if it is heard for the first time. Numbers in it do not count."""
        kind = re.sub(r"[\d.]+(e[-+]?\d+)?", "0", self._reason)
        known = kind in self._logged
        self._logged.add(kind)
        return logging.INFO if known else logging.WARNING

    def settle(self) -> None:
        """A check was made: nothing is left to be tried again."""
        self._retry = None

    def summary(self) -> tuple[str, ...]:
        """For the last report: how many checks were skipped, and the reason of the last."""
        if not self.steps:
            return ()
        what = "1 check was" if len(self.steps) == 1 else f"{len(self.steps)} checks were"
        return (f"{what} skipped, the last at step {self.steps[-1]} ({self._reason})",)

    def state_dict(self) -> dict[str, Any]:
        """Return the skipped steps, the reason and the next attempt."""
        return {"steps": list(self.steps), "reason": self._reason, "retry": self._retry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved run was."""
        self.steps, self._reason, self._retry = list(state["steps"]), state["reason"], state["retry"]
