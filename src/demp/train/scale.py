"""The lengths of the paper's runs, and how a recipe becomes a shorter run."""

import math
from dataclasses import dataclass
from typing import Any, get_args

from demp.errors import UsageError
from demp.files.checks import check_above, check_choice
from demp.train.choices import NoiseKeeps

PUBLISHED = {
    "resnet18-cifar10": (97_656, 250),
    "vgg16-cifar10": (15_625, 80),
    "resnet50-imagenet": (500_456, 100),
    "vit-b16-imagenet": (46_918, 150),
}
"""Recipe -> steps and epochs of the paper's run (App. I)."""
OTHER_EPOCHS = 100
"""Epochs into which a run is divided that has no published length."""
PAPER_NOISE_STD = 5e-5
"""Peak of the noise in the final runs; a standard deviation, whatever the paper's text calls it."""
RATE, DISPLACEMENT = get_args(NoiseKeeps)
"""What the noise of a shorter run has in common with the paper's."""
SHARE_BETWEEN_CUTS = 0.05
"""Period of a scaled run, as a share of it."""
MOST_SGD_STRENGTH = 0.02
"""Where the scaling of the strength stops: beyond it a penalty of SGD outweighs the loss."""


@dataclass(frozen=True)
class Scale:
    """The length of a run against that of the paper's."""

    paper_steps: int
    steps: int

    @property
    def is_paper(self) -> bool:
        """Whether nothing has to be scaled."""
        return self.steps == self.paper_steps

    def noise_std(self, keeps: NoiseKeeps) -> float:
        """The peak of the noise.

        ``rate``: the paper's, so that noise over learning rate stays. ``displacement``: std x sqrt(steps) stays, so
        that noise moves the weights as far in total.

        Raises:
            UsageError: ``keeps`` is neither.
        """
        check_choice("noise_keeps", keeps, get_args(NoiseKeeps))
        return PAPER_NOISE_STD * (1.0 if keeps == RATE else math.sqrt(self.paper_steps / self.steps))

    def period(self, paper_period: int) -> int:
        """The paper's period at paper scale, else 5 % of the run."""
        return paper_period if self.is_paper else max(1, round(SHARE_BETWEEN_CUTS * self.steps))

    def strength(self, paper_strength: float, optimizer: str) -> float:
        """The same total pull on a scale under SGD; unchanged under Adam."""
        if self.is_paper or optimizer.startswith("adam"):
            return paper_strength
        longer = paper_strength * self.paper_steps / self.steps
        return min(longer, max(paper_strength, MOST_SGD_STRENGTH))

    def intervals(self) -> dict[str, Any]:
        """The length, with about 50 log lines, 20 tests and 20 checkpoints."""
        return {
            "steps": self.steps,
            "log_every_steps": max(1, min(100, self.steps // 50)),
            "eval_every_steps": max(20, self.steps // 20),
            "checkpoint_every_steps": max(20, min(5000, self.steps // 20)),
        }


def epoch_share(recipe: str) -> float:
    """The share of a run that is an epoch of the published run of its recipe."""
    return 1 / PUBLISHED[recipe][1] if recipe in PUBLISHED else 1 / OTHER_EPOCHS


def of_recipe(recipe: str, steps: int | None, epochs: float | None) -> Scale:
    """The scale of a run of a recipe of the paper."""
    return scaled(*PUBLISHED[recipe], steps, epochs)


def scaled(paper_steps: int, paper_epochs: float, steps: int | None, epochs: float | None) -> Scale:
    """The scale of a run of ``steps`` or ``epochs``, or of the paper's length if neither is given."""
    check_length(steps, epochs)
    if epochs is not None:
        steps = max(1, round(paper_steps * epochs / paper_epochs))
    return Scale(paper_steps, paper_steps if steps is None else steps)


def check_length(steps: int | None, epochs: float | None) -> None:
    """At most one of the two, and above 0.

    Raises:
        UsageError: both are given, or one is not above 0.
    """
    if steps is not None and epochs is not None:
        raise UsageError(f"steps is {steps} and epochs is {epochs:g}; give one of them")
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None:
            check_above(name, value)
