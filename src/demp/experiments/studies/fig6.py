"""Fig. 6: a little noise removes more weights for the same accuracy."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import TIE, Frontier, Point, beats, of
from demp.experiments.studies.training import base, noise
from demp.experiments.sweep.job import Job

SMALL, LARGE = "ResNet-18, SGDM", "ResNet-50, SGDM"
OURS, NONE = grids.noise_name(5e-5), grids.noise_name(0.0)
LOW = 0.6


class Fig6(Frontier):
    """Accuracy against weight sparsity by noise: ResNet-18 on CIFAR-10, ResNet-50 on ImageNet."""

    id: ClassVar[str] = "fig6"
    title: ClassVar[str] = "Noise on live neurons: accuracy against weight sparsity of ResNet-18 and ResNet-50"
    section: ClassVar[str] = "Sec. 4.2, App. F.6"
    remark: ClassVar[str] = (
        "σ is a standard deviation in a run of the paper's length; shorter runs have those that move weights as far. "
        "The paper does not say which optimizer trained its ResNet-50: SGDM here. At scale cpu ResNet-50 has a quarter "
        "of its width and sees Imagenette at 64 pixels."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """The noise grid of ResNet-18, then two noises of ResNet-50."""
        small, large = base("resnet18", scale, "sgdw"), base("resnet50", scale, "sgdw")
        values = grids.coarse(grids.strengths(scale, "resnet50", "sgdw"), scale)
        lines = [
            grids.demp_line(
                large,
                values,
                panel=LARGE,
                line=grids.noise_name(paper_std),
                seed=seed,
                options={"peak_noise_std": noise("resnet50", large, paper_std)},
            )
            for paper_std in (5e-5, 0.0)
        ]
        return [
            grids.dense(small, SMALL, seed),
            *grids.noise_grid(scale, seed, panel=SMALL),
            grids.dense(large, LARGE, seed),
            *grids.in_turns(lines),
        ]

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """A little is best; it removes more at the same strength."""
        others = list(dict.fromkeys(p.line for p in of(found, SMALL) if p.line.startswith("σ") and p.line != OURS))
        text, holds = beats(found, SMALL, OURS, others, LOW) if others else ("", None)
        more, enough = removes_more(found)
        return [
            Claim(
                sentence="ResNet-18 with SGDM: noise of 5e-5 is the most accurate at equal weight sparsity of 60 % "
                "and more.",
                paper="5e-5 has the best balance, 5e-4 and 1e-3 lose accuracy",
                ours=text,
                holds=holds,
            ),
            Claim(
                sentence="ResNet-50: at equal strength noise of 5e-5 removes more weights and costs less than a point "
                "of accuracy.",
                paper="a large gain in sparsity, the same accuracy",
                ours=more,
                holds=enough,
            ),
        ]


def removes_more(found: Sequence[Point]) -> tuple[str, bool | None]:
    """With noise against without, strength by strength."""
    with_it, without = ({p.setting: p for p in of(found, LARGE, line)} for line in (OURS, NONE))
    both = [setting for setting in with_it if setting in without]
    gains = [(with_it[s].weights - without[s].weights, with_it[s].accuracy - without[s].accuracy) for s in both]
    texts = [
        f"{s}: {100 * more:+.1f} points of weights, {100 * up:+.1f} of accuracy"
        for s, (more, up) in zip(both, gains, strict=True)
    ]
    return "; ".join(texts), (all(more > 0 and up > -TIE for more, up in gains) if both else None)
