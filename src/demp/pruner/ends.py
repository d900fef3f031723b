"""What to change where a run ended without a cut, or without its last: said in its summary."""

from typing import Any

from demp.methods.advice import nothing_may_go
from demp.pruner.past import Past
from demp.pruner.skipping import SKIPPED
from demp.surgery import CutReport

NO_STEP = (
    "no optimizer step was seen: the pruner follows the step() of the optimizer that it was given. If something else "
    "steps the model (a wrapper, another optimizer, arithmetic of your own), give it that one, or attach=False and "
    "call before_step() and after_step() around every step"
)
ALL_SKIPPED = (
    "nothing was removed, since every check was skipped. Mend what its note says before the next run; with "
    "on_error='raise' the first such check stops the run"
)
LAST_SKIPPED = (
    "the last cut was not made, so that what it would have removed is still there. Mend what its note says; with "
    "on_error='raise' the first such check stops the run"
)


def is_skipped(report: CutReport) -> bool:
    """Return whether the report is that of a check that was skipped."""
    return any(note.startswith(SKIPPED) for note in report.notes)


def advice_at_end(pruner: Any, past: Past, cuts: int) -> tuple[str, ...]:
    """Return what a run that has ended is told; empty if it cut as it should, or its notes say it already."""
    found = [] if pruner.step else [NO_STEP]
    last = pruner.history[-1] if pruner.history else None
    if last is not None and is_skipped(last):
        skipped = sum(times for note, times in past.notes.items() if note.startswith(SKIPPED))
        found.append(LAST_SKIPPED if cuts or skipped < past.checks else ALL_SKIPPED)
    elif not cuts and pruner.step:
        never = nothing_may_go(pruner.graph, pruner.config.limits())
        if not never:
            found.append(pruner.method.nothing_removed())
        elif last is None or not any(never in note for note in last.notes):
            found.append(f"nothing was removed: {never}")
    return tuple(filter(None, found))
