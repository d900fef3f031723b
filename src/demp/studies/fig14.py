"""Fig. 14: VGG-16 on CIFAR-10, DemP against structured methods."""

from collections.abc import Sequence
from typing import ClassVar

from demp.studies import grids
from demp.studies.base import Claim
from demp.studies.frontier import HIGH, Frontier, Point, beats, of
from demp.studies.speed import faster
from demp.sweep.job import Job

COLLAPSE = 0.95
"""Weight sparsity beyond which DemP loses with SGDM."""


class Fig14(Frontier):
    """Accuracy against neuron and weight sparsity, with Adam and with SGDM."""

    id: ClassVar[str] = "fig14"
    title: ClassVar[str] = "VGG-16 on CIFAR-10: accuracy against sparsity of DemP and structured methods"
    section: ClassVar[str] = "App. G"
    remark: ClassVar[str] = (
        "Scale cpu has EarlyCroP-S as the only baseline, a quarter of the width and pictures of 32 pixels instead of "
        "64."
    )
    axes: ClassVar[tuple[str, ...]] = ("neurons", "weights")

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths, the others over targets."""
        names = ["EarlyCroP-S"] if scale == "cpu" else list(grids.NEURON_METHODS)
        return grids.structured("vgg16", scale, seed, names)

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Better with Adam; with SGDM it collapses; it trains faster."""
        others = grids.baselines(found)
        adam, holds = beats(found, "Adam", "DemP", others, HIGH) if others else ("", None)
        collapse, collapses = falls(found)
        return [
            Claim(
                sentence="With Adam, DemP is more accurate than every other structured method at equal weight sparsity "
                "of 80 % and more.",
                paper="better at high sparsity",
                ours=adam,
                holds=holds,
            ),
            Claim(
                sentence="With SGDM, DemP is less accurate than some other structured method beyond 95 % weight "
                "sparsity.",
                paper="decays quickly from about 95 % weight sparsity on",
                ours=collapse,
                holds=collapses,
            ),
            faster(found, "3.56 times"),
        ]


def falls(found: Sequence[Point]) -> tuple[str, bool | None]:
    """Beyond 95 % of weights: is the best of the others above the best of DemP?"""
    beyond = [point for point in of(found, "SGDM") if point.weights >= COLLAPSE]
    ours = [point for point in beyond if point.line == "DemP"]
    others = [point for point in beyond if point.line in grids.baselines(beyond)]
    if not ours or not others:
        return "", None
    mine, best = (max(points, key=lambda point: point.accuracy) for points in (ours, others))
    told = f"DemP {100 * mine.accuracy:.1f} % at {100 * mine.weights:.1f} %, "
    told += f"{best.line} {100 * best.accuracy:.1f} % at {100 * best.weights:.1f} %"
    return told, mine.accuracy < best.accuracy
