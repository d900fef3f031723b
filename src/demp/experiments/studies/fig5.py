"""Fig. 5: regularisers."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Frontier, Point, beats
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job

LOW = 0.6
STRENGTHS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("paper", "adamw", "L2(γ)"): (1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.15, 0.35),
    ("paper", "adamw", "Lasso"): (5e-8, 2.5e-7, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4),
    ("paper", "adamw", "L2"): (1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1),
    ("paper", "sgdw", "L2(γ)"): (1e-4, 5e-4, 1e-3, 3e-3, 5e-3, 9e-3, 2e-2, 0.1),
    ("paper", "sgdw", "Lasso"): (5e-7, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4),
    ("paper", "sgdw", "L2"): (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 2e-3),
    ("cpu", "adamw", "L2(γ)"): (2e-2, 1e-1),
    ("cpu", "adamw", "Lasso"): (1e-4, 3e-4),
    ("cpu", "adamw", "L2"): (1e-2, 5e-2),
    ("cpu", "sgdw", "L2(γ)"): (1e-2, 5e-2),
    ("cpu", "sgdw", "Lasso"): (1e-4, 3e-4),
    ("cpu", "sgdw", "L2"): (2e-3, 5e-3),
}
"""Beside those of the lasso on scales, which are DemP's own."""


class Fig5(Frontier):
    """Accuracy against weight sparsity for lasso and L2, on scales or on all parameters."""

    id: ClassVar[str] = "fig5"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: regularisers"
    section: ClassVar[str] = "Sec. 4.2, App. F.1"
    remark: ClassVar[str] = (
        "The paper does not list the strengths of its four regularisers; each has a grid of its own here, at scale cpu "
        "two values that were not tuned."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Every regulariser over its strengths, with both optimizers."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            lines = []
            for name, penalty in grids.REGULARISERS.items():
                own = grids.coarse(grids.strengths(scale, "resnet18", optimizer), scale)
                values = STRENGTHS.get((scale, optimizer, name), own)
                lines.append(grids.demp_line(config, values, panel=panel, line=name, seed=seed, options=penalty))
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """L2 on scales with Adam, lasso on scales with SGDM."""
        claims = []
        wording = {
            "Adam": ("L2(γ)", "slightly above the others"),
            "SGDM": ("Lasso(γ)", "above the others by a wide margin"),
        }
        for panel, (best, paper) in wording.items():
            text, holds = beats(found, panel, best, [name for name in grids.REGULARISERS if name != best], LOW)
            claims.append(
                Claim(
                    sentence=f"With {panel}, {best} is the most accurate regulariser at equal weight sparsity of 60 % "
                    "and more.",
                    paper=paper,
                    ours=text,
                    holds=holds,
                )
            )
        return claims
