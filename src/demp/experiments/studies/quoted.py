"""Tables of the paper with our rows beside the quoted ones.

Sparsity cannot be chosen exactly, so the run closest to a table's target stands for it, with its own sparsity beside
it; nothing is interpolated (gap 48).
"""

import statistics
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from demp.experiments.studies.base import NONE, Study, Table
from demp.experiments.studies.frontier import DENSE_LINE, Point, of, percent, points, ratio, times
from demp.files.results import Result, Results

NEAR = 0.05
"""A run further than this from the weight sparsity of a row does not stand for it in a claim."""


@dataclass(frozen=True)
class Quoted:
    """A row of a table of the paper in the order of its columns; percentages as printed, costs as ratios to dense."""

    method: str
    """The name of a line of ours."""
    near: float | None
    """Weight sparsity that the row stands for; None for dense training."""
    accuracy: float
    std: float | None = None
    """Standard deviation over three seeds."""
    neurons: float | None = None
    weights: float | None = None
    time: float | None = None
    train_flops: float | None = None
    flops: float | None = None
    source: str = ""
    """From whom the paper has it; empty for its own runs."""


HEADINGS = (
    "method",
    "accuracy: paper",
    "ours",
    "neurons removed: paper",
    "ours",
    "weights sparse: paper",
    "ours",
    "training time: paper",
    "ours",
    "training FLOPs: paper",
    "ours",
    "FLOPs: paper",
    "ours, paper's count",
    "ours, exact",
)
NOTES = (
    "Ours: the run whose weight sparsity is closest to the row's; mean ± standard deviation over seeds.",
    "Sparse weights of ours are removed, or held at zero by a mask.",
    "Costs are ratios to dense training. The paper counts the FLOPs of live outputs and ignores shrunken inputs; ours "
    "by that count take zeros of masks as free, exact ones are of the network that runs.",
    "Training time of ours is that of the dense run of the same seed on the same machine, at another moment.",
)


class Quoting(Study):
    """A study whose outcome is a table of the paper."""

    rows: ClassVar[tuple[Quoted, ...]]
    panel: ClassVar[str]

    @abstractmethod
    def others(self) -> Sequence[str]:
        """Lines of ours that the paper's table does not have, each shown at every target."""

    def table(self, records: Results, scale: str) -> Table:
        """The paper's rows in their order, then our own."""
        found = of(points(records), self.panel)
        quoted = [cells(row, row.method, closest(found, row.method, row.near), records) for row in self.rows]
        targets = sorted({row.near for row in self.rows if row.near is not None})
        more = [p for name in self.others() for near in targets or [0.0] if (p := closest(found, name, near))]
        own = [cells(None, point.line, point, records) for point in {(p.line, p.setting): p for p in more}.values()]
        return Table(HEADINGS, (*quoted, *own), NOTES)


def closest(found: Sequence[Point], line: str, near: float | None) -> Point | None:
    """The point of a line that is closest to a weight sparsity."""
    own = [point for point in found if point.line == line]
    return min(own, key=lambda point: abs(point.weights - (near or 0.0)), default=None)


def standing_for(found: Sequence[Point], line: str, near: float) -> Point | None:
    """The same, unless it is too far to stand for it."""
    point = closest(found, line, near)
    return point if point is not None and abs(point.weights - near) <= NEAR else None


def cells(row: Quoted | None, name: str, point: Point | None, records: Results) -> tuple[str, ...]:
    """A row of the paper, or none, and ours beside it."""
    theirs = [NONE] * 6 if row is None else quoted_cells(row)
    ours = [NONE] * 7 if point is None else our_cells(point, records)
    near = f", about {100 * row.near:.0f} %" if row is not None and row.near is not None else ""
    where = f" (from {row.source})" if row is not None and row.source else ""
    pairs = [cell for pair in zip(theirs, ours, strict=False) for cell in pair]
    return (name + near + where, *pairs, ours[6])


def quoted_cells(row: Quoted) -> list[str]:
    """The cells of a row of the paper, written as the paper prints them."""
    shares = [NONE if value is None else f"{value:g} %" for value in (row.neurons, row.weights)]
    costs = [NONE if value is None else f"{value:g}" for value in (row.time, row.train_flops, row.flops)]
    std = "" if row.std is None else f" ± {row.std:.2f}"
    return [f"{row.accuracy:.2f}{std} %", *shares, *costs]


def our_cells(point: Point, records: Results) -> list[str]:
    """Ours for the same columns, and the exact FLOPs."""
    return [
        percent(point.accuracy, point.std("eval/top1"), 2),
        percent(point.neurons),
        percent(point.weights),
        ratio(times(point.runs, records)),
        ratio([run["train_flops"] / run["train_flops_dense"] for run in point.runs]),
        ratio([run["paper_flops"] / run["paper_flops_dense"] * free(run) for run in point.runs]),
        ratio([run["flops"] / run["flops_dense"] for run in point.runs]),
    ]


def free(run: Result) -> float:
    """The share of the FLOPs that is left if zeros are free."""
    return run["flops_if_zeros_were_free"] / run["flops"] if run["weights_masked"] else 1.0


def against(
    found: Sequence[Point], ours: str, others: Sequence[str], near: float, value: Callable[[Point], float]
) -> tuple[Point, list[Point]] | None:
    """Ours and, of the others that have a point near a weight sparsity, all points, best first; None without one."""
    mine = standing_for(found, ours, near)
    theirs = [point for name in others if (point := standing_for(found, name, near))]
    return None if mine is None or not theirs else (mine, sorted(theirs, key=value, reverse=True))


def point_text(point: Point) -> str:
    """A point in a few words."""
    return f"{point.line} {100 * point.accuracy:.2f} % at {100 * point.weights:.1f} %"


def dense_of(found: Sequence[Point]) -> Point | None:
    """Return the point of the dense runs, None if there is none."""
    return next((point for point in found if point.line == DENSE_LINE), None)


def speed(point: Point, records: Results) -> float | None:
    """Training time as a share of that of dense training."""
    ratios: list[Any] = times(point.runs, records)
    return statistics.fmean(ratios) if ratios else None
