"""Accuracy against sparsity: points with all their seeds, lines in panels, and the comparisons that claims make.

The labels of a job say where its point belongs: ``panel`` (Adam, SGDM, ...), ``line`` (a method or a variant of one;
``Dense`` is drawn as a level), ``setting`` (what moves along the line) and ``seed``.
"""

import statistics
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from demp.experiments.compare.plan import words
from demp.experiments.studies.base import NONE, Claim, Study, Table
from demp.experiments.studies.drawing import SOFT, band, frame, legend, looks, panels, sixes
from demp.files.results import Result, Results

DENSE_LINE = "Dense"
MAIN = "DemP"
"""Comes in every panel, where the lines are too many for one."""
WEIGHTS, NEURONS = "weights", "neurons"
"""The two axes."""
HIGH = 0.8
"""From this weight sparsity on the paper calls it high sparsity."""
HIGH_NEURONS = 0.55
"""The same on the axis of neurons: so many, evenly over the layers, take 80 % of the weights with them."""
TIE = 0.01
"""Accuracies that differ by less than this are called equal where the paper says so without a number."""


@dataclass(frozen=True)
class Point:
    """One setting of one line: a run per seed."""

    panel: str
    line: str
    setting: str
    runs: tuple[Result, ...]

    @property
    def accuracy(self) -> float:
        """Return the mean top-1 accuracy over seeds."""
        return self.mean("eval/top1")

    @property
    def neurons(self) -> float:
        """Return the neuron sparsity, as a mean over seeds."""
        return self.mean("neuron_sparsity")

    @property
    def weights(self) -> float:
        """Weights removed or held at zero, mean over seeds."""
        return statistics.fmean(weights(run) for run in self.runs)

    def mean(self, name: str) -> float:
        """Of any number of the records."""
        return statistics.fmean(run[name] for run in self.runs)

    def std(self, name: str) -> float | None:
        """Sample standard deviation over seeds; None for one."""
        return statistics.stdev(run[name] for run in self.runs) if len(self.runs) > 1 else None


def weights(run: Result) -> float:
    """Weights removed or held at zero, of the dense network's."""
    return run["weight_sparsity"] + run["masked_share"]


def points(records: Results) -> list[Point]:
    """In the order in which panels, lines and settings first come."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for record in records:
        labels = record["labels"]
        key = (labels["panel"], labels["line"], words(labels.get("setting", {})))
        groups.setdefault(key, []).append(record)
    return [Point(*key, tuple(runs)) for key, runs in groups.items()]


def of(found: Sequence[Point], panel: str, line: str = "") -> list[Point]:
    """The points of a panel, or of one line in it."""
    return [point for point in found if point.panel == panel and line in ("", point.line)]


def across(point: Point, axis: str) -> float:
    """Its place on an axis, ``weights`` or ``neurons``."""
    return point.weights if axis == WEIGHTS else point.neurons


def along(line: Sequence[Point], sparsity: float, axis: str = WEIGHTS) -> float | None:
    """The accuracy of a line at a sparsity: straight between neighbouring points, None outside of them."""
    ends = sorted((across(point, axis), point.accuracy) for point in line)
    for at, accuracy in ends:
        if at == sparsity:
            return accuracy
    for (left, low), (right, high) in pairwise(ends):
        if left < sparsity < right:
            return low + (high - low) * (sparsity - left) / (right - left)
    return None


@dataclass(frozen=True)
class Margin:
    """How far one line lies above another where both have a value."""

    margins: tuple[float, ...]
    """In accuracy, at each point of either line that the other covers."""
    sparsities: tuple[float, ...]
    axis: str = WEIGHTS

    @property
    def mean(self) -> float:
        """Return the mean margin over the compared points."""
        return statistics.fmean(self.margins)

    def __str__(self) -> str:
        low, high = (f"{100 * value:+.1f}" for value in (min(self.margins), max(self.margins)))
        left, right = (f"{100 * value:.0f}" for value in (min(self.sparsities), max(self.sparsities)))
        many = f"{low} to {high} points" if low != high else f"{high} points"
        where = f"between {left} and {right} % {self.axis[:-1]} sparsity" if left != right else f"at {right} %"
        return f"{many} {where}"


def margin(ours: Sequence[Point], theirs: Sequence[Point], low: float = 0.0, axis: str = WEIGHTS) -> Margin | None:
    """Ours minus theirs at equal sparsity from ``low`` on; None where the lines do not overlap there."""
    sparsities = sorted({at for point in (*ours, *theirs) if (at := across(point, axis)) >= low})
    pairs = [(at, along(ours, at, axis), along(theirs, at, axis)) for at in sparsities]
    both = [(at, mine - other) for at, mine, other in pairs if mine is not None and other is not None]
    return Margin(tuple(m for _, m in both), tuple(at for at, _ in both), axis) if both else None


def beats(
    found: Sequence[Point], panel: str, line: str, others: Sequence[str], low: float, axis: str = WEIGHTS
) -> tuple[str, bool | None]:
    """Is a line above each other, on average over equal sparsities? In words, and yes or no.

    No answer unless every one of the others can be compared.
    """
    texts, verdicts = [], []
    for other in others:
        one = margin(of(found, panel, line), of(found, panel, other), low, axis)
        if one is not None:
            texts.append(f"over {other} {one}")
            verdicts.append(one.mean > 0)
    complete = len(verdicts) == len(others)
    return "; ".join(texts), (all(verdicts) if complete else False if False in verdicts else None)


def ties(
    found: Sequence[Point], panel: str, line: str, others: Sequence[str], low: float, axis: str = WEIGHTS
) -> tuple[str, bool | None]:
    """Is the line within `TIE` of the best of the others, on average over equal sparsities?"""
    margins = {other: margin(of(found, panel, line), of(found, panel, other), low, axis) for other in others}
    text = "; ".join(f"over {other} {one}" for other, one in margins.items() if one is not None)
    if any(one is None for one in margins.values()):
        return text, None
    closest = min(one.mean for one in margins.values() if one is not None)
    return text, abs(closest) <= TIE


class Frontier(Study):
    """A study whose figure is accuracy against sparsity."""

    axes: ClassVar[tuple[str, ...]] = (WEIGHTS,)
    """Which sparsities are drawn."""

    @abstractmethod
    def frontier_claims(self, found: Sequence[Point]) -> list[Claim]:
        """Return the claims that compare points of this figure."""

    def claims(self, records: Results) -> list[Claim]:
        """From the points of the records."""
        return self.frontier_claims(points(records))

    def figure(self, records: Results, scale: str) -> Any:
        """A row of panels per optimizer or network; every method a line, dense a level, a band over seeds."""
        found = points(records)
        rows = [
            (panel, [*lines, DENSE_LINE])
            for panel in dict.fromkeys(point.panel for point in found)
            for lines in sixes([p.line for p in of(found, panel) if p.line != DENSE_LINE], MAIN)
        ]
        several = len(self.axes) > 1
        figure, axes = panels(len(self.axes) if several else len(rows), len(rows) if several else 1)
        look = looks([point.line for point in found if point.line != DENSE_LINE])
        places = [(row, axis) for row in rows for axis in self.axes]
        for ((panel, lines), axis), here in zip(places, axes, strict=True):
            draw(here, [point for point in of(found, panel) if point.line in lines], axis, look)
            frame(here, panel, f"{axis[:-1]} sparsity, %", f"{split_of(records)} accuracy, %")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Return a table with one row per setting."""
        return Table(HEADINGS, tuple(row(point, records) for point in points(records)), NOTES)


def draw(axes: Any, found: Sequence[Point], axis: str, look: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw all lines of one panel."""
    for name in dict.fromkeys(point.line for point in found):
        line = [point for point in found if point.line == name]
        if name == DENSE_LINE:
            level(axes, [run["eval/top1"] for point in line for run in point.runs])
        else:
            accuracies = [[100 * run["eval/top1"] for run in point.runs] for point in line]
            band(axes, [100 * across(point, axis) for point in line], accuracies, look[name], name)


def level(axes: Any, accuracies: Sequence[float]) -> None:
    """Dense training: a line, and a band of one standard deviation over seeds."""
    middle = 100 * statistics.fmean(accuracies)
    axes.axhline(middle, color=SOFT, linewidth=1.1, linestyle="--", label=DENSE_LINE)
    if len(accuracies) > 1:
        spread = 100 * statistics.stdev(accuracies)
        axes.axhspan(middle - spread, middle + spread, color=SOFT, alpha=0.15, linewidth=0)


def split_of(records: Results) -> str:
    """The name of the split on which accuracies were measured."""
    return next((record["split"] for record in records), "test")


HEADINGS = (
    "panel",
    "line",
    "setting",
    "seeds",
    "accuracy",
    "neurons removed",
    "weights removed",
    "weights masked",
    "training FLOPs",
    "FLOPs",
    "training time",
)
NOTES = (
    "Accuracy at the end of the run on the whole test split, mean ± standard deviation over seeds.",
    "FLOPs are exact ones and ratios to the dense network; training FLOPs hold checks and scorings.",
    "Training time is a ratio to the dense run of the same seed and panel on the same machine, made at another moment.",
)


def row(point: Point, records: Results) -> tuple[str, ...]:
    """Return the table cells of one point."""
    return (
        point.panel,
        point.line,
        point.setting or NONE,
        str(len(point.runs)),
        percent(point.accuracy, point.std("eval/top1"), 2),
        percent(point.neurons),
        percent(point.mean("weight_sparsity")),
        percent(point.mean("masked_share")),
        ratio([run["train_flops"] / run["train_flops_dense"] for run in point.runs]),
        ratio([run["flops"] / run["flops_dense"] for run in point.runs]),
        ratio(times(point.runs, records)),
    )


def times(runs: Sequence[Result], records: Results) -> list[float]:
    """Training seconds over those of the dense run of the same panel, seed and machine, where there is one."""
    dense = {
        (run["labels"]["panel"], run["labels"]["seed"], run["machine"]): run["train_seconds"]
        for run in records
        if run["labels"]["line"] == DENSE_LINE
    }
    keys = [((run["labels"]["panel"], run["labels"]["seed"], run["machine"]), run["train_seconds"]) for run in runs]
    return [seconds / dense[key] for key, seconds in keys if key in dense]


def percent(value: float, std: float | None = None, digits: int = 1) -> str:
    """Format a share and its standard deviation as a percentage: 0.1234 becomes 12.3 %."""
    more = f" ± {100 * std:.{digits}f}" if std is not None else ""
    return f"{100 * value:.{digits}f}{more} %"


def ratio(values: Sequence[float]) -> str:
    """The mean of a ratio over seeds, with two digits."""
    return f"{statistics.fmean(values):.2f}" if values else NONE
