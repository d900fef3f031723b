"""The geometric random walk of Lemmas B.2 and B.3: a direction that is unstable until noise holds it at zero.

``w' = w - eta (h + zeta) w`` with a curvature ``h`` and bounded noise ``zeta``, symmetric about zero (Eq. 11).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.experiments.theory.absorbing import positive

CHUNK = 1 << 22
"""Factors that are drawn at a time."""


class Noise(Protocol):
    """Bounded and symmetric about zero."""

    @property
    def std(self) -> float:
        """Return sigma, the standard deviation of the noise."""
        ...

    @property
    def reach(self) -> float:
        """Return the largest possible absolute value of the noise, ``|zeta|``."""
        ...

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw independent values of the given shape in float64."""
        ...

    def log_moments(self, middle: float, scale: float) -> tuple[float, float]:
        """Mean and variance of ``log(middle - scale zeta)``."""
        ...


@dataclass(frozen=True)
class TwoPoint:
    """``+std`` or ``-std``, equally likely."""

    std: float

    def __post_init__(self) -> None:
        positive(std=self.std)

    @property
    def reach(self) -> float:
        """Return the largest possible absolute value of the noise, ``|zeta|``."""
        return self.std

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw independent values of the given shape in float64."""
        up = torch.rand(shape, generator=generator) < 0.5
        return torch.where(up, self.std, -self.std).double()

    def log_moments(self, middle: float, scale: float) -> tuple[float, float]:
        """Mean and variance of ``log(middle - scale zeta)``: of two equally likely values."""
        low, high = math.log(middle - scale * self.std), math.log(middle + scale * self.std)
        return (low + high) / 2, (high - low) ** 2 / 4


@dataclass(frozen=True)
class Uniform:
    """Uniform between ``-sqrt(3) std`` and ``sqrt(3) std``."""

    std: float

    def __post_init__(self) -> None:
        positive(std=self.std)

    @property
    def reach(self) -> float:
        """Return the largest possible absolute value of the noise, ``|zeta|``."""
        return math.sqrt(3) * self.std

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw independent values of the given shape in float64."""
        return self.reach * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)

    def log_moments(self, middle: float, scale: float) -> tuple[float, float]:
        """Mean and variance of ``log(middle - scale zeta)``: integrals of log and its square over an interval.

        Where the interval is narrow against its middle, the difference of the two primitives would lose its digits;
        there the series in ``scale reach / middle`` stands for it.
        """
        half = scale * self.reach
        if half < 5e-3 * middle:
            small = (half / middle) ** 2
            return math.log(middle) - small / 6 - small**2 / 20, small / 3 + 7 * small**2 / 45
        ends = middle + half, middle - half
        first, second = (x * math.log(x) - x if x else 0.0 for x in ends)
        mean = (first - second) / (2 * half)
        squares = [x * math.log(x) ** 2 - 2 * x * math.log(x) + 2 * x if x else 0.0 for x in ends]
        return mean, (squares[0] - squares[1]) / (2 * half) - mean**2


KINDS = {"two-point": TwoPoint, "uniform": Uniform}


def growth_rate(noise: Noise, rate: float, curvature: float) -> float:
    """``mu = E[log(1 - eta (h + zeta))]``: ``|w|`` goes like ``exp(mu t)`` (Lemma B.2); below zero it dies out.

    Raises:
        UsageError: ``rate`` is so large that a step may cross zero, where the lemma does not hold.
    """
    return _log_step(noise, rate, curvature)[0]


def growth_spread(noise: Noise, rate: float, curvature: float) -> float:
    """Standard deviation of ``log(1 - eta (h + zeta))``, of one step; of ``log|w_t|`` it is ``sqrt(t)`` times that."""
    return math.sqrt(_log_step(noise, rate, curvature)[1])


def settled_after(noise: Noise, rate: float, curvature: float, *, epsilon: float, delta: float) -> int:
    """A ``t0(epsilon, delta)`` for Lemma B.2: from there on ``|w|`` is within ``exp(t (mu -+ epsilon))``.

    With probability at least ``1 - delta``, by Chebyshev's inequality on the mean of the logarithms:
    ``t0 = var / (delta epsilon^2)``.
    """
    positive(epsilon=epsilon, delta=delta)
    return math.ceil(_log_step(noise, rate, curvature)[1] / (delta * epsilon**2))


def rate_bound(noise: Noise, rate: float, curvature: float) -> float:
    """Upper bound of `growth_rate`: ``-eta h - eta^2/2 (h^2 + sigma^2) - eta^3/3 (h^3 + 3 h sigma^2)`` (Eq. 15)."""
    h, power = curvature, noise.std**2
    return -rate * h - rate**2 / 2 * (h**2 + power) - rate**3 / 3 * (h**3 + 3 * h * power)


def stability_range(noise: Noise, curvature: float) -> tuple[float, float] | None:
    """Learning rates at which Lemma B.3 makes a direction of negative curvature stable; None where it shows none.

    Between the roots of ``P(eta) = |h| - eta/2 (h^2 + sigma^2) + eta^2/3 |h| (h^2 + 3 sigma^2)``, as far as
    ``eta |zeta| < 1``, which the lemma assumes. For small ``|h| / sigma`` the upper root, near ``1 / (2 |h|)``, lies
    far beyond that limit, and what ends the range is the assumption. A sufficient condition; `stable_above` is exact.
    """
    h, power = _negative(curvature), noise.std**2
    square, linear = h * (h**2 + 3 * power) / 3, (h**2 + power) / 2
    inside = linear**2 - 4 * square * h
    if inside <= 0:
        return None
    low, high = 2 * h / (linear + math.sqrt(inside)), (linear + math.sqrt(inside)) / (2 * square)
    end = min(high, 1 / noise.reach)
    return (low, end) if low < end else None


def stable_above(noise: Noise, curvature: float) -> float | None:
    """The learning rate from which on, up to ``1 / max|zeta|``, noise makes a negative curvature stable; None: nowhere.

    ``mu`` is concave in the rate, zero at 0 and rising there, so it has at most one further zero; found by bisection.
    """
    _negative(curvature)
    low, high = 0.0, 1 / noise.reach
    edge = math.nextafter(high, 0)
    if growth_rate(noise, edge, curvature) >= 0:
        return None
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if growth_rate(noise, middle, curvature) > 0 else (low, middle)
    return high


def geometric_walks(
    noise: Noise, rate: float, curvature: float, times: Sequence[int], *, walks: int = 100_000, seed: int = 0
) -> Tensor:
    """Simulate Eq. 11: ``log|w_t / w_0|`` of every walk at each of the rising ``times``, float64 (times, walks).

    Raises:
        UsageError: a step may cross zero, or ``times`` do not rise from above 0.
    """
    _raise_if_crossing(noise, rate, curvature)
    positive(walks=walks)
    if not times or any(not later > earlier for earlier, later in zip((0, *times), times, strict=False)):
        raise UsageError(f"times are {list(times)}; give rising numbers of steps above 0")
    draw = torch.Generator().manual_seed(seed)
    now, found = torch.zeros(int(walks), dtype=torch.float64), []
    for earlier, later in zip((0, *times), times, strict=False):
        for rows in torch.arange(earlier, later).split(max(1, CHUNK // int(walks))):
            factors = noise.draw((len(rows), int(walks)), draw).mul_(-rate).add_(1 - rate * curvature)
            now = now + factors.log_().sum(0)
        found.append(now)
    return torch.stack(found)


def _log_step(noise: Noise, rate: float, curvature: float) -> tuple[float, float]:
    _raise_if_crossing(noise, rate, curvature)
    return noise.log_moments(1 - rate * curvature, rate)


def _raise_if_crossing(noise: Noise, rate: float, curvature: float) -> None:
    positive(rate=rate)
    if rate * noise.reach >= 1 or 1 - rate * (curvature + noise.reach) <= 0:
        raise UsageError(
            f"at learning rate {rate:g} a step may cross zero (curvature {curvature:g}, |noise| up to "
            f"{noise.reach:g}); the lemmas ask for rate * |noise| < 1: lower one of them"
        )


def _negative(curvature: float) -> float:
    if not (math.isfinite(curvature) and curvature < 0):
        raise UsageError(f"curvature is {curvature}; Lemma B.3 is about directions of negative curvature, below 0")
    return -curvature
