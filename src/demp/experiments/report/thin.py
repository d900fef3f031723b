"""A series of any length in a few points that draw the same line: the extremes of every stretch stay."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

BUCKETS = 100
"""Stretches that a figure can show as different: two to four pixels each."""

Pair = tuple[float, float]


class CurvePoint(NamedTuple):
    """A value at a step."""

    step: float
    value: float


class Thinned:
    """Takes points one at a time in a few kilobytes.

    At most ``2 * buckets`` stretches of equal numbers of points; when they are full, neighbours join. Each keeps the
    first of its lowest and of its highest points, so no spike is lost; the first and the last point stay as well. A
    series of fewer than ``2 * buckets`` points stays as it is.
    """

    def __init__(self, buckets: int = BUCKETS) -> None:
        self.limit = 2 * buckets
        self.width = 1
        """Points per stretch."""
        self._full: list[tuple[Pair, Pair]] = []
        """Lowest and highest of every stretch."""
        self._inside = 0
        """Points in the open stretch."""
        self._low = self._high = self._last = (0.0, 0.0)
        self._first: Pair | None = None

    def add(self, step: float, value: float) -> None:
        """Add the next point, and join stretches once they are too many."""
        point = self._last = (step, value)
        if not self._inside:
            self._low = self._high = point
            if self._first is None:
                self._first = point
        elif value < self._low[1]:
            self._low = point
        elif value > self._high[1]:
            self._high = point
        self._inside += 1
        if self._inside == self.width:
            self._full.append((self._low, self._high))
            self._inside = 0
            if len(self._full) == self.limit:
                pairs = zip(self._full[::2], self._full[1::2], strict=True)
                self._full = [joined(left, right) for left, right in pairs]
                self.width *= 2

    def points(self) -> list[CurvePoint]:
        """Return the points that stay, in the order in which they came."""
        return [CurvePoint(*pair) for pair in dict.fromkeys(self._stay())]

    def _stay(self) -> Iterator[Pair]:
        if self._first is None:
            return
        yield self._first
        still_open = [(self._low, self._high)] if self._inside else []
        for low, high in (*self._full, *still_open):
            yield from (low, high) if low[0] <= high[0] else (high, low)
        yield self._last


def joined(left: tuple[Pair, Pair], right: tuple[Pair, Pair]) -> tuple[Pair, Pair]:
    """Return the extremes of two neighbouring stretches; of equal ones the earlier."""
    low = right[0] if right[0][1] < left[0][1] else left[0]
    high = right[1] if right[1][1] > left[1][1] else left[1]
    return low, high


def thinned(points: Iterable[Pair], buckets: int = BUCKETS) -> list[CurvePoint]:
    """Return the points of a whole series that stay."""
    series = Thinned(buckets)
    for step, value in points:
        series.add(step, value)
    return series.points()
