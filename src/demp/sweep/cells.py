"""Numbers over seeds, and as a table shows them."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

NONE = "–"


def mean(values: Sequence[float]) -> float | None:
    """The mean of what there is."""
    return statistics.fmean(values) if values else None


def share(value: float | None) -> str:
    """0.1234 -> 12.3 %."""
    return NONE if value is None else f"{100 * value:.1f} %"


def ratio(value: float | None) -> str:
    """Three digits behind the point."""
    return NONE if value is None else f"{value:.3f}"


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation of shares, in percent."""
    middle, wide = mean(values), spread(values)
    if middle is None:
        return NONE
    return f"{100 * middle:.2f}{'' if wide is None else f' ± {100 * wide:.2f}'} %"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; whatever stands in a cell stays in it, and is text."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(in_cell, line))} |" for line in lines)


def in_cell(text: str) -> str:
    """Words that neither end their cell or row nor begin an element of HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split("\n")).replace("\r", " ")


def text(value: Any) -> str:
    """A value in a few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)
