"""Mean and deviation of what readers see, over examples and positions, gathered batch by batch without cancellation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.activity.reductions import reduced
from demp.errors import UsageError

CACHED = 1 << 18
"""Values that are centred at a time: few enough to stay in a processor's cache between the passes over them."""
FAR = 0.99
"""Share of the sum of squares that the mean may take before the sums are made again around that mean."""


@dataclass(frozen=True)
class Moments:
    """Per place of an axis, float64 on the CPU: number of values, their mean, the sum of their squared deviations.

    Two of them merge exactly (Chan, Golub and LeVeque 1983), so that batches and ranks may come in pieces.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def none(cls, size: int) -> "Moments":
        """Return the moments of no values, for an axis of ``size`` places."""
        return cls(*(torch.zeros(size, dtype=torch.float64) for _ in range(3)))

    @classmethod
    def along(cls, values: Tensor, axis: int) -> "Moments":
        """Of one activation, over all axes but one.

        Sums run in float32 or wider around a value of each place, so that a constant has deviation 0 exactly and a
        large mean costs no digits; where that value lies far off the mean they run again around the mean.

        Raises:
            UsageError: the batch is empty.
        """
        size = values.shape[axis]
        if values.numel() == 0 and size:
            raise UsageError("cannot look for dead neurons on an empty batch")
        middle = values[tuple(slice(None) if d == axis else n // 2 for d, n in enumerate(values.shape))]
        centre = middle.to(torch.promote_types(values.dtype, torch.float32))
        count = values.numel() // max(size, 1)
        total, squares = sums_around(centre, values, axis)
        if bool((total.square() > FAR * count * squares.clamp(min=0)).any()):
            centre = torch.where(squares > 0, centre + (total / count).to(centre.dtype), centre)
            total, squares = sums_around(centre, values, axis)
        mean = centre.double() + total / count
        left = (squares - total.square() / count).clamp(min=0)
        counts = torch.full((size,), float(count), dtype=torch.float64)
        return cls(counts, mean.cpu(), torch.where(squares == 0, 0.0, left).cpu())

    def at(self, places: Tensor, size: int) -> "Moments":
        """The same on a longer axis, whose other places have no values."""
        return Moments(*(torch.zeros(size, dtype=torch.float64).index_copy(0, places, v) for v in self.parts()))

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of the values of both, merged exactly."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        gap = other.mean - self.mean
        mean = torch.where(self.count == 0, other.mean, torch.where(gap == 0, self.mean, self.mean + gap * share))
        mean = torch.where(other.count == 0, self.mean, mean)
        between = torch.where((self.count == 0) | (other.count == 0), 0.0, gap.square() * self.count * share)
        return Moments(count, mean, self.squares + other.squares + between)

    def of(self, places: Tensor, owner: Tensor, size: int) -> "Moments":
        """Per owner: of all the places that are its own (several after a flatten)."""

        def added(values: Tensor) -> Tensor:
            return torch.zeros(size, dtype=torch.float64).index_add(0, owner, values)

        count, mean = self.count[places], self.mean[places]
        lowest = torch.full((size,), torch.inf, dtype=torch.float64).scatter_reduce(0, owner, mean, "amin")
        counts = added(count)
        # around the lowest mean, so that equal means have no spread at all
        middle = lowest + added(count * (mean - lowest[owner])) / counts.clamp(min=1)
        spread = added(count * (mean - middle[owner]).square())
        return Moments(counts, middle, added(self.squares[places]) + spread)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, with the number of values as the divisor."""
        return (self.squares / self.count.clamp(min=1)).sqrt()

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return count, mean and sum of squared deviations, each per place."""
        return self.count, self.mean, self.squares

    def to_plain(self) -> list[Tensor]:
        """For a checkpoint, or another rank."""
        return [part.clone() for part in self.parts()]


def sums_around(centre: Tensor, values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Sums of ``values - centre`` and of its square, over all axes but one, float64.

    The outermost axis in memory is taken in pieces that stay in the cache; on a GPU all at once.
    """
    shape = [-1 if dim == axis else 1 for dim in range(values.dim())]
    outer = max(range(values.dim()), key=values.stride)
    rows = max(1, CACHED * values.shape[outer] // max(values.numel(), 1))
    if outer == axis or values.is_cuda:
        rows = values.shape[outer]
    total = torch.zeros(values.shape[axis], dtype=torch.float64, device=values.device)
    squares = torch.zeros_like(total)
    for piece in values.split(rows, outer):
        centred = piece - centre.view(shape)
        total += reduced(centred, axis, torch.sum)
        squares += reduced(centred.mul_(centred), axis, torch.sum)
    return total, squares


def merged(first: Mapping[str, Moments], others: Iterable[Mapping[str, Moments]]) -> dict[str, Moments]:
    """The moments of several ranks, place by place, in their order."""
    found = dict(first)
    for other in others:
        for key, value in other.items():
            found[key] = found[key].merged(value) if key in found else value
    return found
