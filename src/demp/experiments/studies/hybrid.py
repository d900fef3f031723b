"""DemP together with masks on single weights."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import HIGH, Frontier, Point, beats, of
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job

DEMP, RIGL = "DemP", "RigL"
HALF = 0.5
MASKED = {"smoke": (HALF,), "cpu": (HALF,), "paper": (HALF, 0.8, 0.9)}
"""Share of the weights of what is left that the masks of the combination hold at zero."""
SHARES = {"smoke": (0.8,), "cpu": (0.8, 0.95), "paper": grids.WEIGHT_SPARSITIES["paper"]}
"""Weight sparsities of RigL alone."""


class Hybrid(Frontier):
    """Accuracy against weight sparsity of DemP, of RigL, and of both in one run."""

    id: ClassVar[str] = "hybrid"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: DemP, RigL, and both in one run"
    section: ClassVar[str] = "Sec. 5, App. H.1"
    remark: ClassVar[str] = (
        "The paper proposes the combination and shows no numbers. RigL is set as in fig16, alone and in the "
        "combination, where every tensor keeps its density after a cut. Masked weights count as sparse."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """DemP and RigL as in Fig. 16; the combination over strengths, a line per density of the masks."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            values = grids.strengths(scale, "resnet18", optimizer)
            lines = [
                grids.demp_line(config, values, panel=panel, line=DEMP, seed=seed),
                grids.masked(config, RIGL, SHARES[scale], panel=panel, seed=seed),
            ]
            for share in MASKED[scale]:
                settings = [{"peak_strength": value} for value in grids.coarse(values, scale)]
                options = {**grids.SWEPT, **grids.REWIRED, "weight_sparsity": share}
                where = {"panel": panel, "line": both(share), "seed": seed}
                lines.append(grids.along(config, "demp+rigl", settings, options=options, **where))
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """More competitive than either, and smaller for real than RigL's."""
        claims = []
        for panel in grids.PANELS.values():
            text, holds = beats(found, panel, both(HALF), [DEMP, RIGL], HIGH)
            claims.append(
                Claim(
                    sentence=f"With {panel}, DemP with masks on half of what is left is more accurate at equal weight "
                    "sparsity of 80 % and more than DemP alone and than RigL alone.",
                    paper="could be more competitive (no number)",
                    ours=text,
                    holds=holds,
                )
            )
            claims.append(smaller(found, panel))
        return claims


def both(share: float) -> str:
    """The name of the combination's line."""
    return f"DemP + RigL, {100 * share:.0f} % masked"


def smaller(found: Sequence[Point], panel: str) -> Claim:
    """FLOPs of the networks that really run."""
    exact = {
        name: [point.mean("flops") / point.mean("flops_dense") for point in of(found, panel) if name in point.line]
        for name in ("DemP + RigL", RIGL)
    }
    exact[RIGL] = [point.mean("flops") / point.mean("flops_dense") for point in of(found, panel, RIGL)]
    ranges = {name: f"{name} {min(values):.2f} to {max(values):.2f}" for name, values in exact.items() if values}
    whole = len(ranges) == len(exact)
    return Claim(
        sentence=f"With {panel}, every network of DemP with RigL takes fewer FLOPs than every one of RigL alone.",
        paper="only what is removed saves time (App. G), no number",
        ours=" against ".join(ranges.values()) if whole else "",
        holds=max(exact["DemP + RigL"]) < min(exact[RIGL]) if whole else None,
    )
