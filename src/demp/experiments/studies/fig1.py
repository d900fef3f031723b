"""Fig. 1: neurons die while an ordinary network trains."""

import statistics
from typing import Any, ClassVar

from demp.experiments.studies.base import Claim, Study, Table
from demp.experiments.studies.dead import CPU_STEPS, SHARE, final, groups, line, std, watched
from demp.experiments.studies.drawing import COLOURS, frame, legend, panels
from demp.experiments.studies.frontier import percent
from demp.experiments.studies.training import base, training
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results
from demp.train.config import DENSE

RATES = (0.05, 0.01)
ACTIVATIONS = {"relu": "ReLU", "leaky_relu": "Leaky ReLU", "silu": "Swish"}
EPS = 0.01
EARLY = 0.25


class Fig1(Study):
    """Share of dead neurons over steps, three activations at two learning rates, nothing pruned."""

    id: ClassVar[str] = "fig1"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10, not pruned: dead neurons over training, by activation and rate"
    section: ClassVar[str] = "Sec. 2.1"
    remark: ClassVar[str] = (
        f"Dead is who stays below {EPS:g} in absolute value at every read of its layer on 512 training images, other "
        f"ones at every look. At scale cpu a quarter of the width and {CPU_STEPS} steps."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Return jobs of dense training with Adam, per learning rate and activation."""
        found = []
        for rate in RATES:
            for activation in ACTIVATIONS:
                config = base("resnet18", scale, "adamw", cpu_steps=CPU_STEPS)
                config = config.merged({"optimizer": {"lr": rate}, "model": {"activation": activation}})
                config = watched(config, scale, criterion="epsilon", eps=EPS, relative=False)
                labels = {"activation": activation, "rate": rate}
                found.append(training(config, DENSE, seed=seed, labels=labels, series=[SHARE]))
        return found

    def figure(self, records: Results, scale: str) -> Any:
        """One panel; a colour per activation, dashed at the low rate."""
        figure, (axes,) = panels(1)
        for (activation, rate), runs in settings(records).items():
            colour = COLOURS[list(ACTIVATIONS).index(activation)]
            look = {"color": colour, "linestyle": "-" if rate == RATES[0] else "--"}
            line(axes, runs, SHARE, look, f"{ACTIVATIONS[activation]}, {rate:g}", scale=100)
        frame(axes, self.title.split(":")[0], "step", "dead neurons, %")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """The share early and at the end."""
        headings = ("activation", "rate", "seeds", f"after {100 * EARLY:.0f} % of the steps", "at the end", "accuracy")
        rows = [
            (
                ACTIVATIONS[activation],
                f"{rate:g}",
                str(len(runs)),
                percent(statistics.fmean(early(run) for run in runs)),
                percent(final(runs), std(runs)),
                percent(statistics.fmean(run["eval/top1"] for run in runs)),
            )
            for (activation, rate), runs in settings(records).items()
        ]
        return Table(headings, tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """Early, more with a high rate, with every activation."""
        found = settings(records)
        whole = len(found) == len(RATES) * len(ACTIVATIONS)
        ends = {key: final(runs) for key, runs in found.items()}
        high = {activation: share for (activation, rate), share in ends.items() if rate == RATES[0]}
        low = {activation: share for (activation, rate), share in ends.items() if rate == RATES[1]}
        rise = {a: statistics.fmean(early(run) for run in found[a, RATES[0]]) for a in high}
        texts = (f"{ACTIVATIONS[a]} {percent(high[a])} against {percent(low[a])}" for a in high if a in low)
        return [
            Claim(
                sentence="At rate 0.05 a considerable share of neurons (a twentieth and more) is dead at the end, with "
                "every activation.",
                paper="up to about 40 %",
                ours=", ".join(f"{ACTIVATIONS[a]} {percent(share)}" for a, share in high.items()),
                holds=all(share >= 0.05 for share in high.values()) if whole else None,
            ),
            Claim(
                sentence="The number of dead neurons jumps early: at rate 0.05 at least half of those dead at the end "
                "are dead after a quarter of the steps, with every activation.",
                paper="a sudden increase early in training",
                ours=", ".join(f"{ACTIVATIONS[a]} {percent(rise[a])} of {percent(high[a])}" for a in rise),
                holds=all(rise[a] >= high[a] / 2 > 0 for a in rise) if whole else None,
            ),
            Claim(
                sentence="More neurons die at learning rate 0.05 than at 0.01, with every activation.",
                paper="more in all three pairs",
                ours=", ".join(texts) or "",
                holds=all(high[a] > low[a] for a in high) if whole else None,
            ),
        ]


def settings(records: Results) -> dict[tuple[str, float], list[Result]]:
    """The seeds of each activation and rate."""
    return groups(records, lambda labels: (labels["activation"], labels["rate"]))


def early(run: Result) -> float:
    """The share at the first look after a quarter of the steps."""
    return next(value for step, value in run["series"][SHARE] if step >= EARLY * run["steps"])
