"""When neurons die, in trainings of several lengths."""

from typing import Any, ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim, Study, Table
from demp.experiments.studies.dead import SHARE, final, groups, line, over_steps, std, watched
from demp.experiments.studies.drawing import band, frame, legend, looks, panels
from demp.experiments.studies.frontier import percent
from demp.experiments.studies.training import base, training
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results
from demp.train.config import DENSE

LENGTHS = {"smoke": (8, 16), "cpu": (500, 2000, 1000), "paper": (6_104, 97_656, 24_414)}
"""Steps of a run; the shortest and the longest first."""
RATES = {"adamw": 0.05, "sgdw": 0.5}
"""Rates at which neurons die, as in Figs. 1 and 10."""
EARLY, LATE = 0.25, 2 / 3
"""Shares of the run: by then most of the dead are dead; from then on their number is settled."""
SETTLED = 0.02
"""A share of dead neurons that changes by no more than this is settled."""


class Lengths(Study):
    """Share of dead neurons over the run, for trainings of several lengths, nothing pruned."""

    id: ClassVar[str] = "lengths"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10, not pruned: dead neurons over trainings of several lengths"
    section: ClassVar[str] = "App. D.2"
    remark: ClassVar[str] = (
        "The paper argues with Fig. 1, runs of one length. Here the schedule of the rate is stretched with the run, at "
        "rates at which neurons die. At scale cpu a quarter of the width."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Dense training with both optimizers at every length."""
        found = []
        for steps in LENGTHS[scale]:
            for optimizer, word in grids.PANELS.items():
                change = {"steps": steps, "optimizer": {"lr": RATES[optimizer]}}
                config = watched(base("resnet18", scale, optimizer).merged(change), scale)
                labels = {"optimizer": word, "length": steps}
                found.append(training(config, DENSE, seed=seed, labels=labels, series=[SHARE]))
        return found

    def figure(self, records: Results, scale: str) -> Any:
        """By step and by share of the run; a colour per length, SGDM dashed."""
        figure, axes = panels(2)
        names = [f"{steps:,} steps" for _, steps in lengths(records)]
        for (optimizer, steps), runs in lengths(records).items():
            look = {k: v for k, v in looks(names)[f"{steps:,} steps"].items() if k == "color"}
            look["linestyle"] = "-" if optimizer == grids.PANELS["adamw"] else "--"
            line(axes[0], runs, SHARE, look, f"{optimizer}, {steps:,} steps", scale=100)
            points = over_steps(runs, SHARE)
            shares = [[100 * share for share in values] for _, values in points]
            band(axes[1], [100 * step / steps for step, _ in points], shares, look, f"{optimizer}, {steps:,} steps")
        frame(axes[0], "by step", "step", "dead neurons, %")
        frame(axes[1], "by share of the run", "share of the run, %", "dead neurons, %")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """The share early, two thirds through, and at the end."""
        headings = ("optimizer", "steps", "seeds", "after 25 %", "after 67 %", "at the end", "accuracy")
        rows = [
            (
                optimizer,
                f"{steps:,}",
                str(len(runs)),
                *(percent(mean_at(runs, share)) for share in (EARLY, LATE)),
                percent(final(runs), std(runs)),
                percent(sum(run["eval/top1"] for run in runs) / len(runs)),
            )
            for (optimizer, steps), runs in lengths(records).items()
        ]
        return Table(headings, tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """Early, then settled; a longer training kills no more in proportion."""
        return [claim for word in grids.PANELS.values() for claim in claims_of(records, word)]


def claims_of(records: Results, optimizer: str) -> list[Claim]:
    """About one optimizer, over all lengths that there are."""
    found = sorted((steps, runs) for (word, steps), runs in lengths(records).items() if word == optimizer)
    ends = {steps: final(runs) for steps, runs in found}
    early = {steps: mean_at(runs, EARLY) for steps, runs in found}
    late = {steps: max(abs(value - final(runs)) for value in tail(runs)) for steps, runs in found}
    several = len(found) > 1
    first, last = (found[0][0], found[-1][0]) if several else (1, 1)
    grown = ends[last] / ends[first] if several and ends[first] else None
    return [
        Claim(
            sentence=f"With {optimizer}, at every length at least half of the neurons that are dead at the end are "
            "dead after a quarter of the steps.",
            paper="the count spikes sharply in early training",
            ours=", ".join(f"{steps:,} steps: {percent(early[steps])} of {percent(ends[steps])}" for steps in ends),
            holds=all(early[steps] >= ends[steps] / 2 > 0 for steps in ends) if several else None,
        ),
        Claim(
            sentence=f"With {optimizer}, at every length the share of dead neurons stays within {100 * SETTLED:g} "
            "points of its end during the last third of the steps.",
            paper="it fluctuates slightly before it stabilises",
            ours=", ".join(f"{steps:,} steps: by at most {percent(value)}" for steps, value in late.items()),
            holds=all(value <= SETTLED for value in late.values()) if several else None,
        ),
        Claim(
            sentence=f"With {optimizer}, from the shortest to the longest training the share of dead neurons at the "
            "end grows by less than the number of steps.",
            paper="that a neuron dies more probably the longer one trains does not entirely hold in practice",
            ours="" if grown is None else f"{grown:.2f} times in {last / first:g} times the steps",
            holds=None if grown is None else grown < last / first,
        ),
    ]


def lengths(records: Results) -> dict[tuple[str, int], list[Result]]:
    """The seeds of each optimizer and length."""
    return groups(records, lambda labels: (labels["optimizer"], labels["length"]))


def mean_at(runs: list[Result], share: float) -> float:
    """The share of dead neurons at the first look after a share of the run, mean over seeds."""
    values = [next(v for step, v in run["series"][SHARE] if step >= share * run["steps"]) for run in runs]
    return sum(values) / len(values)


def tail(runs: list[Result]) -> list[float]:
    """The shares during the last third of the run, mean over seeds at each look."""
    points = over_steps(runs, SHARE)
    end = max(step for step, _ in points)
    return [sum(values) / len(values) for step, values in points if step >= LATE * end]
