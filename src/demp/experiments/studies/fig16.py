"""Fig. 16: DemP against methods that mask single weights."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import HIGH, Frontier, Point, beats, ties
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job


class Fig16(Frontier):
    """Accuracy against weight sparsity, with Adam and with SGDM. Masked weights stay in the network."""

    id: ClassVar[str] = "fig16"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: DemP and unstructured methods"
    section: ClassVar[str] = "App. G.1"
    remark: ClassVar[str] = (
        "Masked weights count as sparse here, as in the paper, though they save no time and no memory. The settings "
        "are those of the authors' sweep: the same sparsity in every tensor, the stem and the norms spared, masks "
        "updated from 30 to 80 % of the run, SET and RigL dropping 30 % at each update."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths, the others over weight sparsities."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            values = grids.strengths(scale, "resnet18", optimizer)
            lines = [grids.demp_line(config, values, panel=panel, line="DemP", seed=seed)]
            shares = grids.WEIGHT_SPARSITIES[scale]
            lines += [grids.masked(config, name, shares, panel=panel, seed=seed) for name in grids.WEIGHT_METHODS]
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Better with Adam, equal with SGDM."""
        others = [name for name in grids.WEIGHT_METHODS if any(point.line == name for point in found)]
        adam, adam_holds = beats(found, "Adam", "DemP", others, HIGH) if others else ("", None)
        sgdm, sgdm_holds = ties(found, "SGDM", "DemP", others, HIGH) if others else ("", None)
        return [
            Claim(
                sentence="With Adam, DemP is more accurate than the unstructured methods in their base configuration "
                "at equal weight sparsity of 80 % and more.",
                paper="more effective",
                ours=adam,
                holds=adam_holds,
            ),
            Claim(
                sentence="With SGDM, DemP is as accurate as the best unstructured method at equal weight sparsity of "
                "80 % and more.",
                paper="similar",
                ours=sgdm,
                holds=sgdm_holds,
            ),
        ]
