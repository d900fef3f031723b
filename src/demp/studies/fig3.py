"""Fig. 3: ResNet-18 on CIFAR-10, DemP against structured methods that prune before or early in training."""

from collections.abc import Sequence
from typing import ClassVar

from demp.studies import grids
from demp.studies.base import Claim
from demp.studies.frontier import HIGH, Frontier, Point, beats, ties
from demp.studies.speed import faster
from demp.sweep.job import Job


class Fig3(Frontier):
    """Accuracy against neuron and weight sparsity, with Adam and with SGDM."""

    id: ClassVar[str] = "fig3"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: accuracy against sparsity of DemP and structured methods"
    section: ClassVar[str] = "Sec. 4.1"
    remark: ClassVar[str] = (
        "Scale cpu has EarlyCroP-S as the only baseline, twice: an epoch of its trigger is the share of the run that "
        "it is in the paper's, or a pass over the data, of which so short a run has five. A claim about equal sparsity "
        "compares straight lines between neighbouring points where both methods have points on either side."
    )
    axes: ClassVar[tuple[str, ...]] = ("neurons", "weights")

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths, the others over targets."""
        names = ["EarlyCroP-S", grids.DATA_EPOCHS] if scale == "cpu" else list(grids.NEURON_METHODS)
        return grids.structured("resnet18", scale, seed, names)

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Better with Adam, equal with SGDM."""
        return [*structured_claims(found, "up to 2.25 points above the best other method"), faster(found, "2.45 times")]


def structured_claims(found: Sequence[Point], number: str) -> list[Claim]:
    """What Fig. 3 and Fig. 15 both claim, of the baselines that there are."""
    others = grids.baselines(found)
    adam, adam_holds = beats(found, "Adam", "DemP", others, HIGH) if others else ("", None)
    sgdm, sgdm_holds = ties(found, "SGDM", "DemP", others, HIGH) if others else ("", None)
    return [
        Claim(
            sentence="With Adam, DemP is more accurate than every other structured method at equal weight sparsity of "
            "80 % and more.",
            paper=number,
            ours=adam,
            holds=adam_holds,
        ),
        Claim(
            sentence="With SGDM, DemP is as accurate as the best other structured method at equal weight sparsity of "
            "80 % and more.",
            paper="no significant difference",
            ours=sgdm,
            holds=sgdm_holds,
        ),
    ]
