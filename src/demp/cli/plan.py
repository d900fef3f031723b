"""Say what a training is about to do and how long it takes; ask where it is as long as the paper's."""

import sys

from rich.console import Console

from demp.errors import UsageError
from demp.experiments.sweep.timeleft import message
from demp.train import torchrun
from demp.train.forecast import forecast
from demp.train.observer import Observer
from demp.train.run import Run


class Announcement(Observer):
    """Prints what is about to happen, before the first step. ``sure``: never asks.

    Without a terminal to answer at, nothing is asked either.
    """

    def __init__(self, console: Console, *, sure: bool) -> None:
        self.console, self.sure = console, sure

    def built(self, run: Run) -> None:
        """Nothing is written yet.

        Raises:
            UsageError: the answer was no.
        """
        if not torchrun.is_main_process():
            return
        plan = forecast(run)
        length = message(plan.seconds).removesuffix(" left")
        self.console.print(f"{plan.text}; {length} at the dense network's pace", highlight=False, markup=False)
        if not plan.paper_scale or self.sure or torchrun.launched() or not sys.stdin.isatty():
            return
        question = f"{run.config.recipe} runs for as long as in the paper (--steps makes it shorter). Begin? [y/N] "
        if self.console.input(question, markup=False).strip().lower() not in ("y", "yes"):
            raise UsageError("nothing was trained; give --steps or --epochs for a shorter run, or --yes for this one")
