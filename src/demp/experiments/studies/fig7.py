"""Fig. 7: removing neurons while training costs nothing."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import TIE, Frontier, Point, of, ties
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job

DURING, AT_THE_END = "removed while training", "removed at the end"


class Fig7(Frontier):
    """Accuracy against weight sparsity with neurons removed every period, or all at the end."""

    id: ClassVar[str] = "fig7"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: removal while training or at the end"
    section: ClassVar[str] = "Sec. 4.2, App. F.2"

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Both ways over strengths, with both optimizers."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            values = grids.coarse(grids.strengths(scale, "resnet18", optimizer), scale)
            lines = [
                grids.demp_line(config, values, panel=panel, line=line, seed=seed, options={"dynamic": dynamic})
                for line, dynamic in ((DURING, True), (AT_THE_END, False))
            ]
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """No loss with Adam; more removed with SGDM."""
        adam, adam_holds = ties(found, "Adam", DURING, [AT_THE_END], 0.0)
        sgdm, sgdm_holds = at_equal_strength(found, "SGDM")
        return [
            Claim(
                sentence="With Adam, removal while training is as accurate at equal weight sparsity as removal at the "
                "end.",
                paper="minimal differences",
                ours=adam,
                holds=adam_holds,
            ),
            Claim(
                sentence="With SGDM, removal while training removes more weights at equal strength and costs less than "
                "a point of accuracy.",
                paper="more sparsity, no loss of accuracy",
                ours=sgdm,
                holds=sgdm_holds,
            ),
        ]


def at_equal_strength(found: Sequence[Point], panel: str) -> tuple[str, bool | None]:
    """While training against at the end, strength by strength."""
    during, late = ({p.setting: p for p in of(found, panel, line)} for line in (DURING, AT_THE_END))
    gains = {
        s: (during[s].weights - late[s].weights, during[s].accuracy - late[s].accuracy) for s in during if s in late
    }
    texts = [
        f"{s}: {100 * more:+.1f} points of weights, {100 * up:+.1f} of accuracy" for s, (more, up) in gains.items()
    ]
    holds = all(more > 0 and up > -TIE for more, up in gains.values()) if gains else None
    return "; ".join(texts), holds
