"""Fig. 4: schedules of the strength."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Frontier, Point, beats
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job

SCHEDULES = {"One cycle": "one-cycle", "Constant": "constant", "Cosine decay": "cosine-decay", "Warm-up": "warm-up"}
LOW = 0.75


class Fig4(Frontier):
    """Accuracy against weight sparsity for four schedules of the lasso on scales and of the noise."""

    id: ClassVar[str] = "fig4"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: schedules of the strength"
    section: ClassVar[str] = "Sec. 4.2, App. F.4"

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Every schedule over strengths, with both optimizers."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            values = grids.coarse(grids.strengths(scale, "resnet18", optimizer), scale)
            lines = [
                grids.demp_line(config, values, panel=panel, line=name, seed=seed, options={"schedule": schedule})
                for name, schedule in SCHEDULES.items()
            ]
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """The one cycle is at least as good as the others."""
        best, *others = SCHEDULES
        claims = []
        for panel in grids.PANELS.values():
            text, holds = beats(found, panel, best, others, LOW)
            claims.append(
                Claim(
                    sentence=f"With {panel}, the one-cycle schedule is the most accurate at equal weight sparsity of "
                    "75 % and more.",
                    paper="slightly better at high sparsity, all schedules sound",
                    ours=text,
                    holds=holds,
                )
            )
        return claims
