"""Schedules of the penalty strength and the noise over training steps (paper, Sec. 3.1 and App. F.4).

A schedule is a frozen shape with peak 1: ``schedule(step, total_steps)`` is the factor by which the peak
strength or the peak noise is multiplied at ``step`` (0-based). Times are fractions of the run, so one config fits
runs of any length.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from demp.errors import UsageError
from demp.files.checks import check_choice, check_choices

ScheduleName = Literal["one-cycle", "one-cycle-linear", "constant", "cosine-decay", "warm-up"]
"""What ``make`` knows."""
START_DIV = 25.0
"""The stock one-cycle starts at peak / 25."""
END_DIV = 1e4
"""The stock one-cycle ends at start / 10,000, which is peak / 250,000."""
WARM_UP_START = 1e-6
"""The warm-up schedule of Fig. 4 starts at this share of the peak: almost zero."""


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from ``start`` to ``end`` as ``share`` goes from 0 to 1."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Common to all shapes: the part of the run that they span."""

    span: float = 1.0
    """Share of the run after which the schedule stays at its last value (methods: T_s / T)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.span <= 1.0:
            raise UsageError(f"schedule span is {self.span}; give a share of the run in (0, 1]")

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor at ``step``; steps past the span keep the last value."""
        return self.at(min(step / (self.span * total_steps), 1.0))

    @property
    def peak_share(self) -> float:
        """Share of the span at which the peak is reached."""
        return 0.0

    @abstractmethod
    def at(self, share: float) -> float:
        """The factor at a share of the span in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak strength at every step of the run."""

    def at(self, share: float) -> float:
        """Return the factor 1 at every share of the span."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class CosineDecay(Schedule):
    """From the peak at the first step to zero at the end of the span."""

    def at(self, share: float) -> float:
        """(1 + cos(pi * share)) / 2."""
        return cosine(1.0, 0.0, share)


@dataclass(frozen=True, kw_only=True)
class WarmUp(Schedule):
    """Linear from (almost) zero to the peak over the span, then constant."""

    start: float = WARM_UP_START
    """Factor at step 0."""

    @property
    def peak_share(self) -> float:
        """Return 1, since the peak is at the end of the span."""
        return 1.0

    def at(self, share: float) -> float:
        """The factor at this share of the span: linear from ``start`` to 1."""
        return self.start + (1.0 - self.start) * share


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Rise to the peak, then cosine decay: the schedule of DemP.

    The authors' code uses the stock cosine one-cycle: peak / 25 at step 0, a cosine rise to the peak at 30 % of the
    span, a cosine fall to peak / 250,000 at its end. The paper's text (Sec. 3.1) describes a linear rise instead:
    ``rise="linear"``.
    """

    peak_at: float = 0.3
    """Share of the span at which the peak is reached."""
    rise: Literal["cosine", "linear"] = "cosine"
    """``cosine`` (the stock form) or ``linear`` (the paper's text)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.peak_at < 1.0:
            raise UsageError(f"peak_at is {self.peak_at}; give a share of the span in [0, 1)")
        check_choices(self, "schedule")

    @property
    def peak_share(self) -> float:
        """Return the share of the span at which the rise ends."""
        return self.peak_at

    def at(self, share: float) -> float:
        """1/25 at 0, 1 at ``peak_at``, 1/250,000 at 1."""
        start, end = 1.0 / START_DIV, 1.0 / (START_DIV * END_DIV)
        if share < self.peak_at:
            up = share / self.peak_at
            return cosine(start, 1.0, up) if self.rise == "cosine" else start + (1.0 - start) * up
        return cosine(1.0, end, (share - self.peak_at) / (1.0 - self.peak_at))


def make(name: ScheduleName, *, span: float = 1.0, peak_at: float = 0.3) -> Schedule:
    """The schedule called ``name``: one-cycle, one-cycle-linear, constant, cosine-decay or warm-up.

    Raises:
        UsageError: there is no schedule of this name, or a share is out of range.
    """
    shapes: dict[ScheduleName, Callable[[], Schedule]] = {
        "one-cycle": lambda: OneCycle(span=span, peak_at=peak_at),
        "one-cycle-linear": lambda: OneCycle(span=span, peak_at=peak_at, rise="linear"),
        "constant": lambda: Constant(span=span),
        "cosine-decay": lambda: CosineDecay(span=span),
        "warm-up": lambda: WarmUp(span=span),
    }
    check_choice("schedule", name, shapes)
    return shapes[name]()
