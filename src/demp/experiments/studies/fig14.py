"""Fig. 14: VGG-16 on CIFAR-10, DemP against structured methods."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import HIGH, HIGH_NEURONS, NEURONS, WEIGHTS, Frontier, Point, across, beats, of
from demp.experiments.studies.speed import faster
from demp.experiments.sweep.job import Job

COLLAPSE = {WEIGHTS: 0.95, NEURONS: 0.8}
"""Sparsities beyond which DemP loses with SGDM."""


class Fig14(Frontier):
    """Accuracy against neuron and weight sparsity, with Adam and with SGDM."""

    id: ClassVar[str] = "fig14"
    title: ClassVar[str] = "VGG-16 on CIFAR-10: accuracy against sparsity of DemP and structured methods"
    section: ClassVar[str] = "App. G"
    remark: ClassVar[str] = (
        "Scale cpu has EarlyCroP-S as the only baseline, a quarter of the width and images of 32 pixels instead of "
        "64. As in the authors' code the last convolution has 1,024 channels (at full width) and images are cropped "
        "before they are resized."
    )
    axes: ClassVar[tuple[str, ...]] = (NEURONS, WEIGHTS)

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths, the others over targets."""
        return grids.structured("vgg16", scale, seed, grids.COMPARED[scale])

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Better with Adam; with SGDM it collapses; on both axes. It trains faster."""
        others = grids.baselines(found)
        better = []
        for axis, low in ((WEIGHTS, HIGH), (NEURONS, HIGH_NEURONS)):
            text, holds = beats(found, "Adam", "DemP", others, low, axis) if others else ("", None)
            better.append(
                Claim(
                    sentence="With Adam, DemP is more accurate than every other structured method at equal "
                    f"{axis[:-1]} sparsity of {100 * low:.0f} % and more.",
                    paper="better at high sparsity",
                    ours=text,
                    holds=holds,
                )
            )
        collapses = []
        for axis, from_here in COLLAPSE.items():
            text, holds = falls(found, axis, from_here)
            collapses.append(
                Claim(
                    sentence="With SGDM, DemP is less accurate than some other structured method beyond "
                    f"{100 * from_here:.0f} % {axis[:-1]} sparsity.",
                    paper="decays quickly from about 95 % weight sparsity on, about 80 % of the neurons",
                    ours=text,
                    holds=holds,
                )
            )
        return [*better, *collapses, faster(found, "3.56 times")]


def falls(found: Sequence[Point], axis: str, from_here: float) -> tuple[str, bool | None]:
    """Beyond a sparsity: is the best of the others above the best of DemP?"""
    beyond = [point for point in of(found, "SGDM") if across(point, axis) >= from_here]
    ours = [point for point in beyond if point.line == "DemP"]
    others = [point for point in beyond if point.line in grids.baselines(beyond)]
    if not ours or not others:
        return "", None
    mine, best = (max(points, key=lambda point: point.accuracy) for points in (ours, others))
    text = f"DemP {100 * mine.accuracy:.1f} % at {100 * across(mine, axis):.1f} %, "
    text += f"{best.line} {100 * best.accuracy:.1f} % at {100 * across(best, axis):.1f} %"
    return text, mine.accuracy < best.accuracy
