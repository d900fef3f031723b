"""What the figures of all studies share: style, panels, lines with a band over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from demp.experiments.compare.figure import COLOURS, INK, MARKERS, SOFT, save
from demp.experiments.report.scales import evenly
from demp.experiments.studies.line_names import is_line, name_ends
from demp.train.extras import need

__all__ = ["COLOURS", "INK", "MARKERS", "SOFT", "band", "frame", "legend", "looks", "panels", "save", "sixes"]

PANEL = (4.3, 3.5)
"""Inches of one panel."""
MOST = 6
"""Lines in one panel."""
STEPS_ALONG_X = 6
"""At most so many between numbers below a panel; matplotlib's own choice lets numbers of several digits overlap."""


def panels(columns: int, rows: int = 1, *, share_x: bool = False, share_y: bool = False) -> tuple[Any, list[Any]]:
    """A figure, and its axes row by row."""
    size = (PANEL[0] * columns, PANEL[1] * rows)
    figure = need("matplotlib.figure", "report").Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    return figure, list(grid.flatten())


def sixes(names: Sequence[str], always: str = "") -> list[list[str]]:
    """Lines of one panel each: at most six, as even as can be; ``always`` comes in every panel, if it is among them."""
    kept = [name for name in (always,) if name in names]
    others = [name for name in dict.fromkeys(names) if name != always]
    return [[*kept, *part] for part in evenly(others, MOST - len(kept))] or [kept]


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each line, distinguished with any colour vision."""
    pairs = zip(dict.fromkeys(names), cycle(COLOURS), cycle(MARKERS), strict=False)
    return {name: {"color": colour, "marker": marker} for name, colour, marker in pairs}


def band(axes: Any, x: Sequence[float], values: Sequence[Sequence[float]], look: Mapping[str, Any], label: str) -> None:
    """A line through the means over seeds at each ``x``; a band of one standard deviation where there are several."""
    points = sorted(zip(x, values, strict=True), key=lambda point: point[0])
    xs, means = [p for p, _ in points], [statistics.fmean(v) for _, v in points]
    axes.plot(xs, means, **look, linewidth=1.3, markersize=4, label=label)
    if any(len(v) > 1 for v in values):
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=look["color"], alpha=0.15, linewidth=0)


def frame(axes: Any, title: str, x: str, y: str = "") -> None:
    """Give axes a title, labels and a pale grid."""
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if type(ticks := axes.xaxis.get_major_locator()) is need("matplotlib.ticker", "report").AutoLocator:
        ticks.set_params(nbins=STEPS_ALONG_X)
    axes.grid(axis="y", color=SOFT, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Any) -> None:
    """Say which line is which: at the lines' ends where the names fit in every panel, else once below all panels.

    Marks without a line are always named below.
    """
    direct = name_ends(figure)
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if not (direct and is_line(handle)):
                found.setdefault(label, handle)
    for columns in range(min(6, len(found)), 0, -1):
        where = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        made = figure.legend(found.values(), found.keys(), **where)
        if columns == 1 or made.get_window_extent().width <= figure.bbox.width:
            break
        made.remove()
