"""From values to places in a figure, and the round values that name them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class AxisScale:
    """Values from ``low`` to ``high`` lie between the places ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value on the scale."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round values inside, about so many."""
        step = round_step((self.high - self.low) / max(1, about))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))


def scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    pad: float = 0.06,
    zero: bool = False,
    cap: float | None = None,
) -> AxisScale:
    """The scale that shows all values with some room, up to ``cap``; with ``zero`` it begins at zero."""
    values = list(values)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low = min(0.0, low)
    if high - low <= 1e-12 * max(abs(high), abs(low)):
        room = abs(high) * 0.1 or 1.0
        low, high = (low if zero and low == 0 else low - room), high + room
    room = pad * (high - low)
    top = high + room if cap is None or high > cap else min(high + room, cap)
    return AxisScale(low if zero and low == 0 else low - room, top, start, end)


def floor_of(values: Iterable[float]) -> float | None:
    """Where a figure may end below, so that a few values far away do not flatten the others; None: show all.

    Far away: below the highest by more than five times what the median is, and by more than 8 %. A few: at most a
    quarter.
    """
    values = sorted(values)
    if len(values) < 4:
        return None
    top, middle = values[-1], values[len(values) // 2]
    floor = top - max(5 * (top - middle), 0.08 * abs(top))
    below = sum(value < floor for value in values)
    return next(value for value in values if value >= floor) if 0 < below <= len(values) / 4 else None


def evenly(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Parts of at most so many items, in order, as even as can be."""
    many = -(-len(items) // most)
    return [items[len(items) * at // many : len(items) * (at + 1) // many] for at in range(many)]


def without_overlap(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places of labels as near to what they name as a ``gap`` between neighbours and the ends allow."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    blocks: list[tuple[float, list[int]]] = []
    """(middle, members) of labels that touch each other."""
    for at in order:
        block = (places[at], [at])
        while True:
            half = gap * (len(block[1]) - 1) / 2
            block = (min(max(block[0], low + half), max(high - half, low + half)), block[1])
            if not blocks or blocks[-1][0] + gap * (len(blocks[-1][1]) - 1) / 2 + gap <= block[0] - half + 1e-9:
                break
            middle, members = blocks.pop()
            both = members + block[1]
            block = (sum(places[one] for one in both) / len(both), both)
        blocks.append(block)
    found = [0.0] * len(places)
    for middle, members in blocks:
        for at, one in enumerate(members):
            found[one] = middle + gap * (at - (len(members) - 1) / 2)
    return found
