"""Fig. 3: ResNet-18 on CIFAR-10, DemP against structured methods that prune before or early in training."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import HIGH, HIGH_NEURONS, NEURONS, WEIGHTS, Frontier, Point, beats, ties
from demp.experiments.studies.speed import faster
from demp.experiments.sweep.job import Job
from demp.train.scale import PAPER_NOISE_STD

RATIO = "DemP, noise in the paper's ratio"
MARGIN = "up to 2.25 points over the best other method, in Figs. 3, 15 and Table 1 together"


class Fig3(Frontier):
    """Accuracy against neuron and weight sparsity, with Adam and with SGDM."""

    id: ClassVar[str] = "fig3"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: accuracy against sparsity of DemP and structured methods"
    section: ClassVar[str] = "Sec. 4.1"
    remark: ClassVar[str] = (
        "Scale cpu has EarlyCroP-S as the only baseline, twice: an epoch of its trigger is the share of the run that "
        "it is in the paper's, or a pass over the data, of which so short a run has five. DemP has two lines there, "
        "too: noise that moves weights as far as in the paper's run, as in all studies, and noise in the paper's ratio "
        "to the learning rate. A claim about equal sparsity compares straight lines between neighbouring points where "
        "both methods have points on either side."
    )
    axes: ClassVar[tuple[str, ...]] = (NEURONS, WEIGHTS)

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP over strengths, the others over targets."""
        if scale != "cpu":
            return grids.structured("resnet18", scale, seed, grids.COMPARED[scale])
        names = (*grids.COMPARED[scale], grids.DATA_EPOCHS)
        return grids.structured("resnet18", scale, seed, names, more={RATIO: {"peak_noise_std": PAPER_NOISE_STD}})

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Better with Adam, equal with SGDM, on both axes; faster."""
        return [*structured_claims(found, MARGIN), faster(found, "2.45 times")]


def structured_claims(found: Sequence[Point], number: str) -> list[Claim]:
    """What Fig. 3 and Fig. 15 both claim on each axis, of the baselines that there are."""
    others = grids.baselines(found)
    claims = []
    for axis, low in ((WEIGHTS, HIGH), (NEURONS, HIGH_NEURONS)):
        adam, adam_holds = beats(found, "Adam", "DemP", others, low, axis) if others else ("", None)
        sgdm, sgdm_holds = ties(found, "SGDM", "DemP", others, low, axis) if others else ("", None)
        where = f"at equal {axis[:-1]} sparsity of {100 * low:.0f} % and more"
        claims += [
            Claim(
                sentence=f"With Adam, DemP is more accurate than every other structured method {where}.",
                paper=number if axis == WEIGHTS else "better at high sparsity",
                ours=adam,
                holds=adam_holds,
            ),
            Claim(
                sentence=f"With SGDM, DemP is as accurate as the best other structured method {where}.",
                paper="no significant difference",
                ours=sgdm,
                holds=sgdm_holds,
            ),
        ]
    return claims
