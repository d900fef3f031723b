"""Fig. 13: noise alone, on live neurons or on all."""

from collections.abc import Sequence
from typing import ClassVar

from demp.studies import grids
from demp.studies.base import Claim
from demp.studies.frontier import Frontier, Point, ties
from demp.studies.training import base, noise
from demp.sweep.job import Job

NOISES = {"smoke": (1e-3,), "cpu": (1e-3, 3e-4), "paper": (1e-3, 5e-4, 1e-4, 5e-5, 2e-3)}
"""Peak standard deviations in a run of the paper's length."""
LIVE, ALL = "live neurons (asymmetric)", "all weights (symmetric)"
MASKS = {
    LIVE: {"noise_on": "live", "live_mask": "neuron-gradient"},
    ALL: {"noise_on": "all"},
    "weights with a gradient": {"noise_on": "live", "live_mask": "weight-gradient"},
}
"""Which weights were live in the paper's runs cannot be known (gap 47), so all three are run at scale paper."""


class Fig13(Frontier):
    """Accuracy against weight sparsity without a penalty, for three ways to say which weights get noise."""

    id: ClassVar[str] = "fig13"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: noise without a penalty, on live neurons or on all weights"
    section: ClassVar[str] = "App. F.6"

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Every way over noises, with both optimizers; neurons are removed while training."""
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
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """With removal while training it makes no difference."""
        claims = []
        for panel in grids.PANELS.values():
            told, holds = ties(found, panel, LIVE, [ALL], 0.0)
            claims.append(
                Claim(
                    sentence=f"With {panel}, noise on live neurons is as accurate at equal weight sparsity as noise on "
                    "all weights, if dead neurons are removed while training.",
                    paper="no major difference",
                    ours=told,
                    holds=holds,
                )
            )
        return claims
