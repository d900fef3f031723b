"""Numbers over seeds, and as a table shows them."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

NONE = "–"


def mean(values: Sequence[float]) -> float | None:
    """Return the mean of the values; None if there are none."""
    return statistics.fmean(values) if values else None


def share(value: float | None) -> str:
    """Return a share in percent: 0.1234 is 12.3 %."""
    return NONE if value is None else f"{100 * value:.1f} %"


def ratio(value: float | None) -> str:
    """Return a ratio with three digits behind the point."""
    return NONE if value is None else f"{value:.3f}"


def std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def percent(values: Sequence[float]) -> str:
    """Return mean ± standard deviation of shares, in percent."""
    middle, wide = mean(values), std(values)
    if middle is None:
        return NONE
    return f"{100 * middle:.2f}{'' if wide is None else f' ± {100 * wide:.2f}'} %"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; the content of a cell is text, whatever characters it has."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(in_cell, line))} |" for line in lines)


def in_cell(text: str) -> str:
    """Return a text that neither ends its cell or row nor begins an element of HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split("\n")).replace("\r", " ")


def text(value: Any) -> str:
    """Return a value in a few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)
