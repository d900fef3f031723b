"""Neurons that are dead in the model and alive in one of its copies: a lagging average forgets slowly."""

import logging
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from demp.activity.detector import Detector
from demp.errors import UsageError
from demp.parallel import Context
from demp.pruner.model import ShrinkingModel
from demp.surgery import CutReport
from demp.surgery.copy_proof import inputs_for

logger = logging.getLogger("demp")
CHOICES = {
    "wait": "they wait until they are dead there too, at most until the last check",
    "keep": "they stay until they are dead there too",
    "cut": "they go all the same",
}
CHANGE = 1e-3
"""Share of their scale by which outputs of a copy must change to be worth a warning."""


class Sparing:
    """What becomes of such neurons in one run."""

    def __init__(self, alive_in_copies: str) -> None:
        if alive_in_copies not in CHOICES:
            choices = "; ".join(f"{choice!r}: {what}" for choice, what in CHOICES.items())
            raise UsageError(f"alive_in_copies is {alive_in_copies!r}; give one of {choices}")
        self._choice, self._logged = alive_in_copies, False

    def spared(
        self, detector: Detector, shrinking: ShrinkingModel, neurons: Mapping[str, Tensor], *, step: int, final: bool
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Of neurons that are dead in the model those that go now, and the notes on the others."""
        chosen = any(bool(torch.any(flags)) for flags in neurons.values())
        if not chosen or self._choice == "cut" or (final and self._choice == "wait"):
            return dict(neurons), ()
        going, waiting, failed = dead_in_copies(detector, shrinking, neurons, step)
        alive = ", ".join(f"{name} ({count})" for name, count in waiting.items() if count)
        if not alive:
            return going, failed
        note = f"neurons that are dead in the model are alive in copies of it, {alive}: {CHOICES[self._choice]}"
        if not self._logged and shrinking.context.is_main_process:
            others = "; ".join(f"{choice!r}, {what}" for choice, what in CHOICES.items() if choice != self._choice)
            logger.warning("%s. With alive_in_copies=%s", note, others)
        self._logged = True
        return going, (note, *failed)


def dead_in_copies(
    detector: Detector, shrinking: ShrinkingModel, neurons: Mapping[str, Tensor], step: int
) -> tuple[dict[str, Tensor], dict[str, int], tuple[str, ...]]:
    """Of these neurons those that are dead in all copies that run; copy -> how many are alive in it; which cannot run.

    Layer -> boolean per neuron, dense numbering, as ``neurons``. Among several ranks all must ask; they may have other
    copies.
    """
    going, alive, failed = dict(neurons), {}, []
    for copied in shrinking.copies:
        if copied.module is None:
            continue
        fit = partial(inputs_for, copied.module, shrinking.model)
        with shrinking.context.whole(copied.module):
            try:
                dead = detector.detect_on_copy(copied.module, fit, shrinking.state, step).dead
            except Exception as error:  # the user's forward may raise anything
                why = f"{error.__cause__ or error}".strip().split("\n")[0] or type(error).__name__
                failed.append(
                    f"the copy {copied.name} does not run ({why}), so nobody knows which neurons are alive in it"
                )
                continue
        alive[copied.name] = sum(int((flags & ~dead[name]).sum()) for name, flags in neurons.items())
        going = {name: flags & dead[name] for name, flags in going.items()}
    if not shrinking.context.alone:
        going = shrinking.context.common(going)
        of_ranks = shrinking.context.gathered(alive)
        alive = {name: max(one.get(name, 0) for one in of_ranks) for of_rank in of_ranks for name in of_rank}
    return going, alive, tuple(failed)


def warn_of_changes(report: CutReport, context: Context) -> None:
    """Copies whose outputs changed where those of the model did not."""
    least = max(CHANGE, 10 * (report.drift or 0.0))
    changed = {name: drift for name, drift in report.copies.items() if drift is not None and drift > least}
    if changed and context.is_main_process:
        changes = ", ".join(f"{name} by {drift:.2g}" for name, drift in changed.items())
        logger.warning(
            "the cut at step %s changed outputs of copies of the model, over their scale: %s", report.step, changes
        )
