"""Accuracy against sparsity, neurons on the left and weights on the right: every method a line, dense a band."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from demp import files
from demp.experiments.compare.plan import words
from demp.experiments.compare.table import label, split_of
from demp.experiments.sweep.cells import mean
from demp.files.results import DONE, Result, Results
from demp.train.config import DENSE
from demp.train.extras import need

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, distinguished with any colour vision; without the yellow, which paper swallows."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
INK, SOFT = "#1f2933", "#6b7280"
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "demp", "axes.edgecolor": INK}


def write(records: Results, folder: Path) -> list[Path]:
    """Write accuracy.svg and accuracy.png in ``folder``; return their paths."""
    return save(lambda: draw(records), folder / "accuracy")


def save(draw: Callable[[], Any], stem: Path) -> list[Path]:
    """Write stem.svg and stem.png of the figure that ``draw`` makes in the common style; none if it makes none."""
    written = []
    with need("matplotlib", "report").rc_context(STYLE):
        if (figure := draw()) is None:
            return []
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            written.append(stem.with_name(f"{stem.name}.{kind}"))
            with files.replacing_file(written[-1]) as file:
                figure.savefig(file, format=kind, dpi=160, metadata=metadata)
    return written


def draw(records: Results) -> Any:
    """The figure: lines through the means over seeds, a small point per seed; hollow where weights are masked."""
    figure = need("matplotlib.figure", "report").Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    done = [record for record in records if record["status"] == DONE]
    names = [name for name in dict.fromkeys(label(record, "method") for record in done) if name != DENSE]
    looks = list(zip(names, cycle(COLOURS), cycle(MARKERS), strict=False))
    for axes in (left, right):
        level(axes, [100 * record["eval/top1"] for record in done if label(record, "method") == DENSE])
    for name, colour, marker in looks:
        points = settings([record for record in done if label(record, "method") == name])
        look = {"color": colour, "marker": marker}
        line(left, name, points, lambda r: r["neuron_sparsity"], look)
        line(right, name, points, lambda r: r["weight_sparsity"] + r["masked_share"], look)
        masks(right, points, colour)
    frame(left, "neurons removed")
    frame(right, "weights removed (filled), removed and masked (hollow; the dotted part is masked)")
    left.set_ylabel(f"{split_of(records)} accuracy, %")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def settings(records: Results) -> list[list[Result]]:
    """The results of each setting, one per seed."""
    groups: dict[str, list[Result]] = {}
    for record in records:
        groups.setdefault(words(label(record, "setting")), []).append(record)
    return list(groups.values())


def line(axes: Any, name: str, points: Sequence[Results], x: Any, look: Mapping[str, Any]) -> None:
    """One method: its means joined from left to right, each seed a faint point."""
    hollow = any(record["masked_share"] for group in points for record in group)
    face = "white" if hollow else look["color"]
    style = "--" if hollow else "-"
    means = sorted((100 * statistics.fmean(x(r) for r in group), 100 * accuracy(group)) for group in points)
    axes.plot(*zip(*means, strict=True), **look, linestyle=style, linewidth=1.3, markerfacecolor=face, label=name)
    several = [record for group in points if len(group) > 1 for record in group]
    seeds = [100 * x(record) for record in several], [100 * record["eval/top1"] for record in several]
    axes.scatter(*seeds, s=9, color=look["color"], alpha=0.45)


def accuracy(group: Results) -> float:
    """Return the mean top-1 accuracy of a group over its seeds."""
    return statistics.fmean(record["eval/top1"] for record in group)


def masks(axes: Any, points: Sequence[Results], colour: str) -> None:
    """A dotted line from what is removed to what is removed and masked: so much is in the network and zero."""
    for group in points:
        removed = 100 * statistics.fmean(record["weight_sparsity"] for record in group)
        masked = 100 * statistics.fmean(record["masked_share"] for record in group)
        if masked:
            xs, ys = [removed, removed + masked], [100 * accuracy(group)] * 2
            axes.plot(xs, ys, color=colour, linestyle=":", linewidth=0.7, alpha=0.6, marker="|", markevery=[0])


def level(axes: Any, accuracies: Sequence[float]) -> None:
    """Dense training: a line at the mean, a band of one deviation over seeds."""
    middle = mean(accuracies)
    if middle is None:
        return
    axes.axhline(middle, color=SOFT, linewidth=1.1, label=DENSE)
    if len(accuracies) > 1:
        spread = statistics.stdev(accuracies)
        axes.axhspan(middle - spread, middle + spread, color=SOFT, alpha=0.18, linewidth=0)


def frame(axes: Any, label: str) -> None:
    """Set limits, label, grid and tick format of the axes."""
    axes.set_xlim(-2, 102)
    axes.set_xlabel(f"{label}, %")
    axes.grid(axis="y", color=SOFT, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
