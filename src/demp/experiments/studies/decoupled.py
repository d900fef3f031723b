"""The penalty in the loss against the penalty outside of it."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Frontier, Point, of
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job

COUPLED, DECOUPLED, FAR = "in the loss", "times the rate", "by distance"
DISTANCES = {"smoke": (0.5,), "cpu": (0.5, 1.0), "paper": (0.5, 1.0, 0.25, 2.0)}
"""How far a scale goes in the whole run; most begin at 1."""


class Decoupled(Frontier):
    """Accuracy against weight sparsity, with the penalty through the optimizer's moments or past them."""

    id: ClassVar[str] = "decoupled"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: the penalty in the loss, or taken from the scales after the step"
    section: ClassVar[str] = "App. F.5"
    remark: ClassVar[str] = (
        "The paper compares the two in words. The decoupled penalty takes learning rate times strength from every "
        "scale, as decoupled weight decay does; the third line, which is ours, sets how far a scale goes in the whole "
        "run instead. The line of the penalty in the loss has the runs of fig3."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Three lines with both optimizers, dense first."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            values = grids.coarse(grids.strengths(scale, "resnet18", optimizer), scale)
            where, outside = {"panel": panel, "seed": seed}, {"penalty_in": "decoupled"}
            lines = [
                grids.demp_line(config, values, line=COUPLED, **where),
                grids.demp_line(config, values, line=DECOUPLED, options={**outside, "penalty_times_lr": True}, **where),
                grids.demp_line(config, DISTANCES[scale], line=FAR, options=outside, **where),
            ]
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """More sparsity at the same strength."""
        return [claim(found, panel) for panel in grids.PANELS.values()]


def claim(found: Sequence[Point], panel: str) -> Claim:
    """Of every strength that both lines have."""
    shares = {line: {strength_of(p): p.weights for p in of(found, panel, line)} for line in (COUPLED, DECOUPLED)}
    both = sorted(shares[COUPLED].keys() & shares[DECOUPLED].keys())
    pairs = [(shares[COUPLED][value], shares[DECOUPLED][value]) for value in both]
    text = "; ".join(
        f"{value:g}: {100 * a:.1f} against {100 * b:.1f} %" for value, (a, b) in zip(both, pairs, strict=True)
    )
    return Claim(
        sentence=f"With {panel}, a penalty in the loss removes more weights than one outside of the same strength.",
        paper="a higher sparsity for the same strength (no number)",
        ours=text,
        holds=all(a > b for a, b in pairs) if pairs else None,
    )


def strength_of(point: Point) -> float:
    """Of the setting of a point."""
    return float(point.runs[0]["labels"]["setting"]["peak_strength"])
