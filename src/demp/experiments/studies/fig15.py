"""Fig. 15: as Fig. 3 with LeakyReLU, whose neurons are hardly ever zero."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.fig3 import MARGIN, structured_claims
from demp.experiments.studies.frontier import NEURONS, WEIGHTS, Frontier, Point
from demp.experiments.sweep.job import Job

SUM = "DemP, sum over examples"


class Fig15(Frontier):
    """Accuracy against neuron and weight sparsity, with Adam and with SGDM."""

    id: ClassVar[str] = "fig15"
    title: ClassVar[str] = "ResNet-18 with LeakyReLU on CIFAR-10: accuracy against sparsity"
    section: ClassVar[str] = "App. F.7"
    remark: ClassVar[str] = (
        "Two lines of DemP: a neuron is dead if its activation was negative on every example looked at, as the paper's "
        "text has it, or if its sum over examples is not positive, as in the authors' code (gap 13). Scale cpu has "
        "EarlyCroP-S as the only baseline."
    )
    axes: ClassVar[tuple[str, ...]] = (NEURONS, WEIGHTS)

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths by either criterion, the others over targets."""
        names = grids.COMPARED["cpu" if scale == "smoke" else scale]
        more = {SUM: {"criterion": "sum"}}
        return grids.structured("resnet18", scale, seed, names, activation="leaky_relu", more=more)

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Return the same claims on structured methods as with ReLU."""
        return structured_claims(found, MARGIN)
