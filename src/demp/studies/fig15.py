"""Fig. 15: as Fig. 3 with LeakyReLU, whose neurons never fall silent."""

from collections.abc import Sequence
from typing import ClassVar

from demp.studies import grids
from demp.studies.base import Claim
from demp.studies.fig3 import structured_claims
from demp.studies.frontier import Frontier, Point
from demp.sweep.job import Job


class Fig15(Frontier):
    """Accuracy against neuron and weight sparsity, with Adam and with SGDM."""

    id: ClassVar[str] = "fig15"
    title: ClassVar[str] = "ResNet-18 with LeakyReLU on CIFAR-10: accuracy against sparsity"
    section: ClassVar[str] = "App. F.7"
    remark: ClassVar[str] = (
        "A neuron is dead if its activation was negative on every judged example, as the paper's text has it; its code "
        "sums over examples (gap 13). Scale cpu has EarlyCroP-S as the only baseline."
    )
    axes: ClassVar[tuple[str, ...]] = ("neurons", "weights")

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths, the others over targets."""
        names = list(grids.NEURON_METHODS) if scale == "paper" else ["EarlyCroP-S"]
        return grids.structured("resnet18", scale, seed, names, activation="leaky_relu")

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """As with ReLU."""
        return structured_claims(found, "above the other methods, as with ReLU")
