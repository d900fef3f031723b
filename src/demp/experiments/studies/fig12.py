"""Fig. 12: 512 images show which neurons are dead as well as the whole training set."""

import statistics
from typing import Any, ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim, Study, Table
from demp.experiments.studies.dead import CPU_STEPS, SHARE, WHOLE, final, groups, line
from demp.experiments.studies.drawing import COLOURS, frame, legend, panels
from demp.experiments.studies.fig8 import STRENGTHS, job_of
from demp.experiments.studies.frontier import percent
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results

CLOSE = 0.02
"""Shares of neurons that differ by less coincide in a figure."""


class Fig12(Study):
    """Dead neurons over steps, counted on 512 examples and on all, nothing removed."""

    id: ClassVar[str] = "fig12"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: dead on 512 images and on the whole training set"
    section: ClassVar[str] = "App. F.3"
    remark: ClassVar[str] = (
        "The strongest runs of fig8: the paper does not say at which strength. At scale cpu a quarter of the width, "
        f"{CPU_STEPS} steps, and five looks at the whole set."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Return one job per optimizer, each at its first strength."""
        return [job_of(scale, optimizer, STRENGTHS[scale, optimizer][0], seed) for optimizer in grids.PANELS]

    def figure(self, records: Results, scale: str) -> Any:
        """Draw dead neurons over steps by either count, one panel per optimizer."""
        figure, axes = panels(2)
        for here, optimizer in zip(axes, grids.PANELS.values(), strict=True):
            runs = by_optimizer(records).get(optimizer, [])
            line(here, runs, SHARE, {"color": COLOURS[0]}, "512 examples", scale=100)
            line(here, runs, WHOLE, {"color": COLOURS[1], "linestyle": "--"}, "entire dataset", scale=100)
            frame(here, optimizer, "step", "dead neurons, %")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Both at the end, and where they differ most."""
        headings = (
            "optimizer",
            "seeds",
            "512 examples, at the end",
            "entire dataset, at the end",
            "largest difference",
        )
        rows = [
            (
                optimizer,
                str(len(runs)),
                percent(final(runs), None, 2),
                percent(final(runs, WHOLE), None, 2),
                apart(runs),
            )
            for optimizer, runs in by_optimizer(records).items()
        ]
        return Table(headings, tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """Return the claims that both counts of dead neurons coincide."""
        found = by_optimizer(records)
        whole = len(found) == len(grids.PANELS)
        ends = {name: abs(final(runs) - final(runs, WHOLE)) for name, runs in found.items()}
        return [
            Claim(
                sentence=f"Throughout training the two shares of dead neurons differ by less than {100 * CLOSE:g} % of "
                "all neurons, with both optimizers.",
                paper="the curves coincide",
                ours=", ".join(f"{name} at most {apart(runs)}" for name, runs in found.items()),
                holds=all(difference(run) < CLOSE for runs in found.values() for run in runs) if whole else None,
            ),
            Claim(
                sentence="At the end of training they agree within 1 % of all neurons.",
                paper="they match",
                ours=", ".join(f"{name} {percent(value, None, 2)}" for name, value in ends.items()),
                holds=all(value < 0.01 for value in ends.values()) if whole else None,
            ),
        ]


def by_optimizer(records: Results) -> dict[str, list[Result]]:
    """The results of each optimizer, one per seed."""
    return groups(records, lambda labels: labels["optimizer"])


def difference(run: Result) -> float:
    """The largest, over the looks at all images; fewer images can only show more dead."""
    few = dict(map(tuple, run["series"][SHARE]))
    return max(abs(few[step] - value) for step, value in run["series"][WHOLE])


def apart(runs: list[Result]) -> str:
    """The mean difference over seeds, as a percentage."""
    return percent(statistics.fmean(difference(run) for run in runs), None, 2)
