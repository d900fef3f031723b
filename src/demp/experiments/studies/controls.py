"""Learning rate and batch size as controls of sparsity, in place of a penalty."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Frontier, Point, beats, of
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job

PENALTY, RATE, BATCH = "penalty", "learning rate", "batch size"
RATES: dict[tuple[str, str], tuple[float, ...]] = {
    ("smoke", "adamw"): (0.05,),
    ("smoke", "sgdw"): (0.5,),
    ("cpu", "adamw"): (0.05, 0.02),
    ("cpu", "sgdw"): (0.5, 0.3),
    ("paper", "adamw"): (0.05, 0.01, 0.1, 0.025, 0.075),
    ("paper", "sgdw"): (0.5, 0.3, 0.2, 0.75),
}
"""Above those of the recipe, with its batch size."""
AT_RATE = {"adamw": 0.05, "sgdw": 0.3}
"""Of the line of batch sizes: rates at which neurons die, as in Fig. 10."""
BATCHES = {"smoke": (16,), "cpu": (32, 256), "paper": (32, 256, 64, 16)}
SLACK = 0.01
"""A share of removed neurons may fall by this much where the paper says that it rises."""
ALONE = {"peak_strength": 0.0, "noise_on": "off"}
"""Neither penalty nor noise: neurons die of the training alone, and are removed as they do."""


class Controls(Frontier):
    """Accuracy against weight sparsity, driven by rate, by batch size, or by the strength of DemP's penalty."""

    id: ClassVar[str] = "controls"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: learning rate and batch size in place of a penalty"
    section: ClassVar[str] = "Sec. 2.2, App. H.1"
    remark: ClassVar[str] = (
        "The paper measures dead neurons (Fig. 10) and says in words that rate and batch size balance accuracy and "
        "sparsity less well. Here dead neurons are removed while training, without penalty and noise; equally many "
        "steps whatever the batch; the line of the penalty has the runs of fig3."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Three lines with both optimizers, dense first."""
        found: list[Job] = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer)
            values = grids.coarse(grids.strengths(scale, "resnet18", optimizer), scale, 3)
            rates = [({"lr": rate}, {"optimizer": {"lr": rate}}) for rate in RATES[scale, optimizer]]
            at_rate = {"optimizer": {"lr": AT_RATE[optimizer]}}
            batches = [({"batch_size": size}, {**at_rate, "batch_size": size}) for size in BATCHES[scale]]
            where = {"panel": panel, "seed": seed}
            lines = [grids.demp_line(config, values, line=PENALTY, **where)]
            for line, settings in ((RATE, rates), (BATCH, batches)):
                changed = [(setting, config.merged(change)) for setting, change in settings]
                lines.append([grids.one(own, "demp", one, line=line, options=ALONE, **where) for one, own in changed])
            found += [grids.dense(config, panel, seed), *grids.in_turns(lines)]
        return found

    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Both drive sparsity, at a higher price."""
        claims = []
        for panel in grids.PANELS.values():
            claims += [
                driven(found, panel, RATE, "a higher learning rate removes more neurons", "lr", 1),
                driven(
                    found, panel, BATCH, "a smaller batch removes more neurons in equally many steps", "batch_size", -1
                ),
            ]
            text, holds = beats(found, panel, PENALTY, [RATE, BATCH], 0.0)
            claims.append(
                Claim(
                    sentence=f"With {panel}, sparsity by a penalty is more accurate at equal weight sparsity than "
                    "sparsity by learning rate or batch size.",
                    paper="rate and batch size are harder to balance (no number)",
                    ours=text,
                    holds=holds,
                )
            )
        return claims


def driven(found: Sequence[Point], panel: str, line: str, what: str, name: str, sign: int) -> Claim:
    """Does the share of removed neurons rise along a line, in the direction of ``sign``?"""
    own = sorted((sign * value_of(point, name), point.neurons) for point in of(found, panel, line))
    shares = [share for _, share in own]
    up = [b >= a - SLACK for a, b in pairwise(shares)]
    return Claim(
        sentence=f"With {panel}, {what}.",
        paper="more neurons die (Fig. 10), no sparsity is given",
        ours=" → ".join(f"{100 * share:.1f}" for share in shares) + " % removed" if up else "",
        holds=all(up) and shares[-1] > shares[0] if up else None,
    )


def value_of(point: Point, name: str) -> float:
    """Of the setting of a point."""
    setting: dict[str, Any] = point.runs[0]["labels"]["setting"]
    return float(setting[name])
