"""Fig. 8: few of the dead revive."""

import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import NONE, Claim, Study, Table
from demp.experiments.studies.dead import CPU_STEPS, OVERLAP, SHARE, STILL, WHOLE, final, groups, late, line, watched
from demp.experiments.studies.drawing import COLOURS, frame, legend, panels
from demp.experiments.studies.frontier import percent
from demp.experiments.studies.training import base, training
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results
from demp.train.choices import OptimizerName

STRENGTHS = {
    ("smoke", "adamw"): (5e-2,),
    ("smoke", "sgdw"): (5e-2,),
    ("cpu", "adamw"): (1e-2, 5e-3),
    ("cpu", "sgdw"): (1.6e-2, 8e-3),
    ("paper", "adamw"): (1e-3, 1e-4, 5e-5, 1e-5),
    ("paper", "sgdw"): (1e-3, 1e-4, 5e-5, 1e-5),
}
"""Peak strengths of the lasso on scales, the strongest first."""
PANELS = {OVERLAP: "over the smaller set", STILL: "of all that were ever dead"}
SHOWN_AFTER = 15_000 / 97_656
"""The share of the run from which the paper shows the overlap."""


class Fig8(Study):
    """Overlap of the dead with all that ever were dead, over steps, nothing removed."""

    id: ClassVar[str] = "fig8"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: overlap of dead neurons now and before"
    section: ClassVar[str] = "App. C"
    remark: ClassVar[str] = (
        "DemP with its noise, but nothing is removed before the end; 512 training images, other ones at every look. "
        "The text gives |X∩Y| / min(|X|, |Y|), X all that were dead before, Y the dead now; the authors' code divides "
        "by the number of X, which is what says how many came back: both are shown. At scale cpu a "
        f"quarter of the width, {CPU_STEPS} steps, and strengths that kill in so short a run."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Both optimizers over strengths; the runs of Fig. 12 are among them."""
        lines = [
            [job_of(scale, optimizer, strength, seed) for strength in STRENGTHS[scale, optimizer]]
            for optimizer in grids.PANELS
        ]
        return grids.in_turns(lines)

    def figure(self, records: Results, scale: str) -> Any:
        """A panel per optimizer; above the text's overlap, below the code's."""
        figure, axes = panels(2, 2)
        places = [(word, name, optimizer) for name, word in PANELS.items() for optimizer in grids.PANELS.values()]
        for here, (word, name, optimizer) in zip(axes, places, strict=True):
            own = {key[1]: runs for key, runs in settings(records).items() if key[0] == optimizer}
            for colour, (strength, runs) in zip(COLOURS, own.items(), strict=False):
                shown = [shown_part(run, name) for run in runs]
                line(here, shown, name, {"color": colour}, f"λ {strength:g}")
            frame(here, f"{optimizer}: {word}", "step", "overlap")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """The least overlap after the first steps, and the last."""
        headings = (
            "optimizer",
            "λ",
            "seeds",
            "dead at the end",
            "least overlap",
            "overlap at the end",
            "of all ever dead",
        )
        rows = [
            (
                optimizer,
                f"{strength:g}",
                str(len(runs)),
                percent(final(runs)),
                number(least(runs, OVERLAP)),
                number(last(runs, OVERLAP)),
                number(last(runs, STILL)),
            )
            for (optimizer, strength), runs in settings(records).items()
        ]
        note = "Least: over the looks after 15 % of the run, mean over seeds."
        return Table(headings, tuple(rows), (note,))

    def claims(self, records: Results) -> list[Claim]:
        """Adam: none revive. SGDM: most stay dead."""
        adam = {key[1]: runs for key, runs in settings(records).items() if key[0] == "Adam"}
        sgdm = {key[1]: runs for key, runs in settings(records).items() if key[0] == "SGDM"}
        lows = {strength: least(runs, OVERLAP) for strength, runs in adam.items()}
        ends = {strength: last(runs, STILL) for strength, runs in adam.items()}
        others = {strength: last(runs, STILL) for strength, runs in sgdm.items()}
        return [
            Claim(
                sentence="With Adam the overlap stays above 0.99 after 15 % of the run, at every strength.",
                paper="above 0.998",
                ours=listed(lows),
                holds=decided(lows, 0.99),
            ),
            Claim(
                sentence="With Adam more than 90 % of all neurons that were ever dead are dead at the end.",
                paper="over 90 %, almost all (over 99 %) never revive",
                ours=listed(ends),
                holds=decided(ends, 0.9),
            ),
            Claim(
                sentence="With SGDM most of the neurons that were ever dead (more than half) are dead at the end.",
                paper="about 75 %",
                ours=listed(others),
                holds=decided(others, 0.5),
            ),
        ]


def job_of(scale: str, optimizer: OptimizerName, strength: float, seed: int) -> Job:
    """One run, watched on 512 images and now and then on all."""
    config = watched(base("resnet18", scale, optimizer, cpu_steps=CPU_STEPS), scale, whole=True)
    labels = {"optimizer": grids.PANELS[optimizer], "strength": strength}
    options = {"peak_strength": strength, "dynamic": False}
    return training(config, "demp", options, seed=seed, labels=labels, series=[SHARE, WHOLE, OVERLAP, STILL])


def settings(records: Results) -> dict[tuple[str, float], list[Result]]:
    """The seeds of each optimizer and strength."""
    return groups(records, lambda labels: (labels["optimizer"], labels["strength"]))


def shown_part(run: Result, name: str) -> Result:
    """The run with the part of a metric that the paper shows."""
    points = [point for point in run["series"].get(name, []) if point[0] >= SHOWN_AFTER * run["steps"]]
    return {**run, "series": {name: points}}


def least(runs: Sequence[Result], name: str) -> float | None:
    """The lowest value after the first part, mean over seeds; None where no neuron was dead."""
    lows = [min(values) for run in runs if (values := late(run, name, SHOWN_AFTER))]
    return statistics.fmean(lows) if lows else None


def last(runs: Sequence[Result], name: str) -> float | None:
    """The value at the end, mean over seeds; None where no neuron was dead then."""
    ends = [values[-1] for run in runs if (values := late(run, name, 1.0))]
    return statistics.fmean(ends) if ends else None


def number(value: float | None) -> str:
    """Format a number with four decimals, or a placeholder for None."""
    return NONE if value is None else f"{value:.4f}"


def listed(values: dict[float, float | None]) -> str:
    """Return the values in words, each with its strength."""
    return ", ".join(f"{number(value)} at λ {strength:g}" for strength, value in values.items())


def decided(values: dict[float, float | None], low: float) -> bool | None:
    """Return whether all known values exceed ``low``, None if none is known."""
    found = [value for value in values.values() if value is not None]
    return all(value > low for value in found) if found else None
