"""Names at the ends of lines, beside each panel, in place of a legend."""

from collections.abc import Sequence
from typing import Any

from demp.experiments.report.scales import without_overlap

ROOM = 0.42
"""Of a panel's width, for the names beside it."""
SIZE, GAP = 7.5, 1.35
"""Points of a name, and from one name to the next in sizes of a name."""
BESIDE = 1.03
"""Where names begin, in widths of the panel."""


def name_ends(figure: Any) -> bool:
    """Write the name of every line beside its panel, at the height where it ends; False where that is too narrow."""
    panels = [(axes, lines) for axes in figure.axes if (lines := named_lines(axes))]
    figure.draw_without_rendering()  # where panels and ends of lines lie
    if not panels or not all(fits(axes, lines) for axes, lines in panels):
        return False
    for axes, lines in panels:
        ends = [end_of(axes, line) for line in lines]
        step = GAP * SIZE / 72 * figure.dpi / axes.bbox.height
        for line, (x, y), height in zip(
            lines, ends, without_overlap([y for _, y in ends], step, 0.0, 1.0), strict=True
        ):
            colour = line.get_color()
            leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": 1}
            axes.annotate(
                line.get_label(), (x, y), (BESIDE, height), "axes fraction", "axes fraction", leader, False,
                color=colour, fontsize=SIZE, va="center",
            )  # fmt: skip
    return True


def named_lines(axes: Any) -> list[Any]:
    """The lines of a panel that have a name."""
    return [handle for handle in axes.get_legend_handles_labels()[0] if is_line(handle)]


def is_line(handle: Any) -> bool:
    """Is this a line, rather than marks or an area?"""
    return hasattr(handle, "get_xdata") and handle.get_linestyle() not in ("None", "none", "", " ")


def end_of(axes: Any, line: Any) -> tuple[float, float]:
    """Where a line ends on the right, in widths and heights of its panel."""
    places = axes.transAxes.inverted().transform(line.get_transform().transform(line.get_xydata()))
    x, y = max(map(tuple, places), key=lambda place: place[0])
    return float(min(max(x, 0.0), 1.0)), float(min(max(y, 0.0), 1.0))


def fits(axes: Any, lines: Sequence[Any]) -> bool:
    """Is there room beside the panel for the longest name, and along it for all of them?"""
    figure = axes.figure
    letters = max(len(line.get_label()) for line in lines)
    wide = 0.55 * SIZE / 72 * figure.dpi * letters <= ROOM * axes.bbox.width
    return wide and len(lines) * GAP * SIZE / 72 * figure.dpi <= axes.bbox.height
