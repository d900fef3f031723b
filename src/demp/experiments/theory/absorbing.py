"""The absorbing random walk of Proposition B.1: noise alone, and a boundary at zero that keeps what reaches it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from demp.errors import UsageError
from demp.files.checks import check_above

OVERSHOOT = 0.5825971579390107
"""-zeta(1/2) / sqrt(2 pi): how far, in deviations of one step, a boundary lies off that is looked at between steps."""


def survival(start: float, rate: float, time: float, *, step: float = 0.0) -> float:
    """Probability that ``dw = sqrt(rate) dB``, begun at ``start`` > 0, has not reached 0 by ``time``.

    ``erf(w0 / sqrt(2 eta t))`` (Prop. B.1). With ``step`` the walk is caught only at multiples of it, as a weight that
    moves in steps is; then the boundary lies ``0.5826 sqrt(eta step)`` further off (Siegmund 1985), up to terms that
    vanish with ``step / time``.

    Raises:
        UsageError: an argument is not above zero, or ``step`` is below it.
    """
    positive(start=start, rate=rate, time=time)
    if not (math.isfinite(step) and step >= 0):
        raise UsageError(f"step is {step}; give a number of at least 0")
    return math.erf((start + OVERSHOOT * math.sqrt(rate * step)) / math.sqrt(2 * rate * time))


@dataclass(frozen=True)
class Survivors:
    """How many of ``walks`` walks were still alive at each of ``times``."""

    start: float
    rate: float
    times: tuple[float, ...]
    alive: tuple[int, ...]
    walks: int
    step: float = 0.0

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the share of walks that are still alive at each time."""
        return tuple(count / self.walks for count in self.alive)

    @property
    def expected(self) -> tuple[float, ...]:
        """The share that `survival` predicts at each of the times."""
        return tuple(survival(self.start, self.rate, time, step=self.step) for time in self.times)

    @property
    def deviations(self) -> tuple[float, ...]:
        """How far each count lies from what is expected, in standard deviations of a binomial count."""
        return tuple(deviation(n, self.walks, p) for n, p in zip(self.alive, self.expected, strict=True))


def absorbing_walks(
    start: float, rate: float, times: Sequence[float], *, walks: int = 100_000, step: float = 0.0, seed: int = 0
) -> Survivors:
    """Simulate Eq. 5; the count of survivors at each of the rising ``times``.

    Without ``step`` the counts are exact for any ``times``: between two of them a path that is positive at both ends
    has touched zero with probability ``exp(-2 w w' / (eta dt))``, as a Brownian bridge has. With ``step`` the walk
    makes independent normal steps of variance ``eta step`` and dies only where it steps; ``times`` are multiples of it.

    Raises:
        UsageError: times that do not rise, or are no multiples of ``step``; an argument that is not above zero.
    """
    positive(start=start, rate=rate, walks=walks)
    if not times or any(not later > earlier for earlier, later in zip((0.0, *times), times, strict=False)):
        raise UsageError(f"times are {list(times)}; give rising numbers above 0")
    draw = torch.Generator().manual_seed(seed)
    living = torch.full((int(walks),), float(start), dtype=torch.float64)
    alive, before = [], 0.0
    for time in times:
        for span in _spans(before, time, step):
            living = _moved(living, rate * span, draw, bridge=step == 0)
        alive.append(len(living))
        before = time
    return Survivors(start, rate, tuple(float(t) for t in times), tuple(alive), int(walks), step)


def _spans(before: float, time: float, step: float) -> list[float]:
    if not step:
        return [time - before]
    count = round((time - before) / step)
    if not math.isclose(count * step, time - before, rel_tol=1e-9):
        raise UsageError(f"time {time:g} is no multiple of step {step:g}; give times where the walk steps")
    return [step] * count


def _moved(living: torch.Tensor, variance: float, draw: torch.Generator, *, bridge: bool) -> torch.Tensor:
    """The positions of those that survive one normal step."""
    there = living + math.sqrt(variance) * torch.randn(len(living), generator=draw, dtype=torch.float64)
    stays = there > 0
    if bridge:
        touched = torch.exp(-2 * living * there / variance)
        stays &= torch.rand(len(living), generator=draw, dtype=torch.float64) >= touched
    return there[stays]


def deviation(count: int, of: int, probability: float) -> float:
    """How far a count of independent events lies from its mean, in standard deviations; 0 where it cannot differ."""
    spread = math.sqrt(of * probability * (1 - probability))
    off = count - of * probability
    return off / spread if spread else math.copysign(math.inf, off) if off else 0.0


def positive(**values: float) -> None:
    """Make sure that all are finite and above zero.

    Raises:
        UsageError: one is not.
    """
    for name, value in values.items():
        check_above(name, value)
