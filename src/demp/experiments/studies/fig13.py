"""Fig. 13: noise alone, on live neurons or on all."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Frontier, Point, beats, ties
from demp.experiments.studies.training import base, noise
from demp.experiments.sweep.job import Job

NOISES = {"smoke": (1e-3,), "cpu": (1e-3, 3e-4), "paper": (1e-3, 5e-4, 1e-4, 5e-5, 2e-3)}
"""Peak standard deviations in a run of the paper's length."""
LIVE, ALL = "live neurons (asymmetric)", "all weights (symmetric)"
MASKS = {
    LIVE: {"noise_on": "live", "live_mask": "neuron-gradient"},
    ALL: {"noise_on": "all"},
    "weights with a gradient": {"noise_on": "live", "live_mask": "weight-gradient"},
}
"""Which weights were live in the paper's runs cannot be known (gap 47), so all three are run at scale paper."""
PENALTY = "DemP: a penalty, noise 5e-05"
"""Sparsity by strength instead, the noise small: the runs of Fig. 3."""


class Fig13(Frontier):
    """Accuracy against weight sparsity without a penalty, for three ways to say which weights get noise."""

    id: ClassVar[str] = "fig13"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: noise without a penalty, on live neurons or on all weights"
    section: ClassVar[str] = "App. F.6"
    remark: ClassVar[str] = (
        "The paper's figure has the lines without a penalty; its text compares them with more regularisation, for "
        "which the runs of fig3 stand."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Every way over noises, and DemP over strengths, with both optimizers; neurons are removed while training."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            settings = [{"peak_noise_std": noise("resnet18", config, paper_std)} for paper_std in NOISES[scale]]
            lines = [
                grids.along(
                    config, "demp", settings, panel=panel, line=name, seed=seed, options={"peak_strength": 0.0, **mask}
                )
                for name, mask in MASKS.items()
                if scale == "paper" or name in (LIVE, ALL)
            ]
            strengths = grids.coarse(grids.strengths(scale, "resnet18", optimizer), scale)
            lines.append(grids.demp_line(config, strengths, panel=panel, line=PENALTY, seed=seed))
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """With removal while training the mask makes no difference; a penalty is better than noise."""
        claims = []
        for panel in grids.PANELS.values():
            text, holds = ties(found, panel, LIVE, [ALL], 0.0)
            claims.append(
                Claim(
                    sentence=f"With {panel}, noise on live neurons is as accurate at equal weight sparsity as noise on "
                    "all weights, if dead neurons are removed while training.",
                    paper="no major difference",
                    ours=text,
                    holds=holds,
                )
            )
            text, holds = beats(found, panel, PENALTY, [LIVE], 0.0)
            claims.append(
                Claim(
                    sentence=f"With {panel}, sparsity by a stronger penalty is more accurate at equal weight sparsity "
                    "than sparsity by stronger noise alone.",
                    paper="noise alone works, with a worse tradeoff",
                    ours=text,
                    holds=holds,
                )
            )
        return claims
