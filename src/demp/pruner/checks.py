"""The checks of a run: when one is due, which had to wait, which were skipped, and the cuts that they made."""

import logging
from typing import Any

from demp.errors import DempError
from demp.pruner.cutter import Cutter
from demp.pruner.model import HeldError
from demp.pruner.past import Past
from demp.pruner.postponement import Postponement, broken
from demp.pruner.run import PruningRun
from demp.pruner.skipping import Skips
from demp.pruner.view import LiveView
from demp.surgery import CutReport

logger = logging.getLogger("demp")


class Checks:
    """Makes a check where the method's clock says so, and again where one had to wait or failed."""

    def __init__(self, run: PruningRun, view: LiveView, cutter: Cutter, on_error: str) -> None:
        self._run, self._view, self._cutter = run, view, cutter
        self._postponement, self._skips = Postponement(), Skips(on_error, run.total_steps)
        self._final_at: int | None = None
        """After which step the last check of the run was made."""
        self._before = Past()
        """Before a restart."""

    def plan(self) -> None:
        """Follow the run, which has taken another length: its last check is still to come."""
        self._skips.total_steps, self._final_at = self._run.total_steps, None

    @property
    def past(self) -> Past:
        """What the checks of the run have reported, those before a restart included."""
        return self._before.then(self._run.shrinking.history)

    def is_due(self, step: int) -> bool:
        """Is a check due with ``step`` steps done?"""
        return self._made_again(step) or self._run.method.is_due(step)

    def _made_again(self, step: int) -> bool:
        """Had the last check to wait, or is it time to make one again that was skipped?"""
        return self._postponement.waiting or self._skips.is_due(step)

    def make(self, *, final: bool, finishing: bool = False) -> CutReport | None:
        """A check; if the cut cannot be made, the report that says why. None: it waits, or the method is not ready."""
        try:
            return self.attempt(final=final, finishing=finishing)
        except DempError as error:
            self._view.forget()
            return self._skips.skip(self._run.shrinking, self._run.step, error, finishing=finishing)

    def attempt(self, *, final: bool = False, finishing: bool = False) -> CutReport | None:
        """Every cut that the method wants now; the report of the last one. ``finishing``: there is no later moment.

        Raises:
            DempError: a cut cannot be made.
        """
        run, shrinking = self._run, self._run.shrinking
        again = self._made_again(run.step)
        shrinking.look_around()
        shrinking.raise_if_unready()
        context = shrinking.context
        if not (final or again or context.any_of(run.method.ready(run.step, self._view))):
            return None
        try:
            report = self._cut(final=final, finishing=finishing)
        except HeldError as error:
            self._view.forget()
            self._postponement.put_off(run.step, f"{error}", logs=context.is_main_process)
            return None
        self._postponement.end()
        if shrinking.held_by and report.happened and context.is_main_process:
            logger.warning("%s", broken(shrinking.held_by))
        self._skips.settle()
        self._final_at = run.step if final else None
        return report

    def _cut(self, *, final: bool, finishing: bool) -> CutReport:
        """One cut after the other, as long as the method wants another at once; the report of the last."""
        run = self._run
        notes = self._skips.summary() if final else ()
        run.shrinking.begin_check(finishing=finishing, at_once=self._postponement.waiting)
        run.shrinking.context.share_buffers()
        report = self._cutter.cut(final=final, notes=notes)
        while run.method.again(run.step):
            report = self._cutter.cut(final=final, notes=notes)
        return report

    def finish(self) -> None:
        """Make the last check of the run, unless it was just made; its report is the last of the history."""
        if self._final_at != self._run.step:
            self.make(final=True, finishing=True)
        elif not self._run.shrinking.history:  # made before a restart
            self._cutter.nothing()

    def state_dict(self) -> dict[str, Any]:
        """What waits, what was skipped, what they reported, and whether the last one was made."""
        return {
            "postponed": self._postponement.waiting,
            "past": self.past.state_dict(),
            "final": self._final_at == self._run.step,
            "skips": self._skips.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, as_planned: bool) -> None:
        """Go on where a saved run was; ``as_planned``: it was as long as this one, so that its last check counts."""
        history = self._run.shrinking.history
        self._postponement.waiting = bool(state["postponed"])
        saved = Past(**state["past"]) if "past" in state else Past(int(state.get("checks", len(history))))
        del history[max(0, saved.checks - self._before.checks) :]  # made after the state was saved
        self._before = saved.without(history)
        self._final_at = self._run.step if as_planned and state.get("final", False) else None
        if "skips" in state:
            self._skips.load_state_dict(state["skips"])
