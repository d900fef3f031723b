"""Scalable figures as text: tags, frames with axes, lines and marks. Colours are classes that the page defines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from demp.experiments.report.scales import AxisScale
from demp.experiments.report.tags import Markup, num, tag, together

MARKS = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.8 4.6 3.4h-9.2z", "M0-5 5 0 0 5-5 0z")
"""Disc, square, triangle, diamond, around the origin."""
SERIES = 6
"""Colours of series that the page knows: classes s0 to s5; no figure has more lines or methods."""
WIDE, HALF, NARROW = 960.0, 462.0, 340.0
"""Pixels of a figure across the page, of two side by side, and on a phone."""


def text(x: float, y: float, words: str, *, kind: str = "t", anchor: str | None = None, title: str = "") -> Markup:
    """Words at a place; ``title`` has them whole where they were shortened."""
    whole = tag("title", title) if title and title != words else ""
    return tag("text", words, whole, x=float(x), y=float(y), class_=kind, text_anchor=anchor)


def figure(width: float, height: float, content: str, label: str, **data: Any) -> Markup:
    """A whole figure. ``label`` is what a screen reader says."""
    return tag(
        "svg",
        content,
        viewBox=f"0 0 {num(width)} {num(height)}",
        width=num(width),
        height=num(height),
        role="img",
        aria_label=label,
        tabindex=0,
        **data,
    )


def mark(x: float, y: float, shape: int, kind: str, **data: Any) -> Markup:
    """A mark of one of the four shapes."""
    place = f"translate({num(x)} {num(y)})"
    return tag("path", d=MARKS[shape % len(MARKS)], transform=place, class_=f"mark {kind}", **data)


def polyline(points: Iterable[tuple[float, float]], kind: str, **data: Any) -> Markup:
    """Return an SVG line through the points, empty markup without points."""
    d = " ".join(f"{num(x)} {num(y)}" for x, y in points)
    return tag("path", d=f"M{d}", class_=kind, **data) if d else Markup()


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a line that keeps its height until the next point."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def clipped(words: str, most: int) -> str:
    """The end of a name, which distinguishes layers better than its beginning."""
    return words if len(words) <= most else "…" + words[-(most - 1) :]


def headed(words: str, most: int) -> str:
    """The first ``most`` characters of a name, with an ellipsis if there are more."""
    return words if len(words) <= most else words[: most - 1] + "…"


Words = Callable[[float], str]
"""A value as a reader sees it."""


@dataclass(frozen=True)
class Frame:
    """The axes of a figure: its size, and where values of x and y lie in it."""

    width: float
    height: float
    x: AxisScale
    y: AxisScale

    def axes(self, x_words: Words, y_words: Words, x_label: str, y_label: str) -> Markup:
        """Thin lines at round heights, values beside them, what the axes mean above and below."""
        parts = []
        left, right = min(self.x.start, self.x.end), max(self.x.start, self.x.end)
        for value in self.y.ticks(5):
            y = self.y(value)
            parts.append(tag("path", d=f"M{num(left)} {num(y)}H{num(right)}", class_="grid"))
            parts.append(text(left - 7, y + 4, y_words(value), anchor="end"))
        bottom = max(self.y.start, self.y.end)
        parts.append(tag("path", d=f"M{num(left)} {num(bottom)}H{num(right)}", class_="axis"))
        for value in self.x.ticks(max(3, int((right - left) / 80))):
            x = self.x(value)
            parts.append(tag("path", d=f"M{num(x)} {num(bottom)}v4", class_="axis"))
            parts.append(text(x, bottom + 18, x_words(value), anchor="middle"))
        parts.append(text(right, bottom + 36, x_label, kind="l", anchor="end"))
        parts.append(text(0, 12, y_label, kind="l"))
        return together(parts)


@dataclass(frozen=True)
class Panel:
    """One figure that draws itself at any width."""

    draw: Callable[[float], Markup]
    half: bool = False
    """Two of them share a row where there is room."""


@dataclass(frozen=True)
class Figure:
    """A question, the answer in a sentence, and the figures that show it."""

    id: str
    title: str
    answer: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...] = ()
    """(class of the colour and shape, words)"""
    note: str = ""
    """How it was measured, in small print."""
