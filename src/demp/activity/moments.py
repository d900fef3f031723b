"""Mean and deviation of what readers see, over examples and positions, gathered batch by batch without cancellation."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.activity.reductions import reduced
from demp.errors import UsageError

CACHED = 1 << 20
"""Values that are squared at a time: few enough to stay in a processor's cache between the passes over them."""
LONG = 32
"""Values that lie together in memory from which on the norm of a row is the fastest sum of squares."""
FAR = 0.99
"""Share of the sum of squares that the mean may take before the sums are made again nearer to the mean."""


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
        return cls(*(torch.zeros(size, dtype=torch.float64, device="cpu") for _ in range(3)))

    @classmethod
    def along(cls, values: Tensor, axis: int) -> "Moments":
        """Of one activation, over all axes but one.

        Sums run in float32 or wider. Where the mean takes most of the sum of squares, they run again around a value of
        that place, and once more around the mean where that value lies far off; so a constant has deviation 0 exactly
        and a large mean costs no digits.

        Raises:
            UsageError: the batch is empty.
        """
        size = values.shape[axis]
        if values.numel() == 0 and size:
            raise UsageError("cannot look for dead neurons on an empty batch")
        count = values.numel() // max(size, 1)
        order = sorted(range(values.dim()), key=values.stride, reverse=True)
        values, axis = values.permute(order), order.index(axis)  # memory is read in order
        total, squares = sums(values, axis)
        centre = torch.zeros(size, dtype=torch.promote_types(values.dtype, torch.float32), device=values.device)
        for nearer in (middle, mean_of):
            far = (total.square() > FAR * count * squares).nonzero().flatten()
            if len(far):
                centre[far] = nearer(values, axis, centre.double() + total / count).to(centre)[far]
                total[far], squares[far] = sums(values, axis, far, centre[far])
        mean = centre.double() + total / count
        left = (squares - total.square() / count).clamp(min=0)
        counts = torch.full((size,), float(count), dtype=torch.float64, device="cpu")
        return cls(counts, mean.cpu(), torch.where(squares == 0, 0.0, left).cpu())

    def at(self, places: Tensor, size: int) -> "Moments":
        """The same on a longer axis, whose other places have no values."""
        return Moments(
            *(torch.zeros(size, dtype=torch.float64, device="cpu").index_copy(0, places, v) for v in self.parts())
        )

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
            return torch.zeros(size, dtype=torch.float64, device="cpu").index_add(0, owner, values)

        count, mean = self.count[places], self.mean[places]
        lowest = torch.full((size,), torch.inf, dtype=torch.float64, device="cpu").scatter_reduce(
            0, owner, mean, "amin"
        )
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


def sums(
    values: Tensor, axis: int, places: Tensor | None = None, centre: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of values, less those of ``centre``, and of their squares, over all axes but one, float64.

    ``values`` have their outermost axis first. Where long rows lie inside of ``axis``, squares are norms of rows; else
    the outermost axis is taken in pieces that stay in the cache, on a GPU all at once.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    if centre is None and math.prod(values.shape[axis + 1 :]) >= LONG and values.is_contiguous():
        norms = torch.linalg.vector_norm(values.flatten(axis + 1), dim=-1, dtype=dtype).double()
        return reduced(values.to(dtype), axis, torch.sum).double(), norms.square().flatten(0, axis - 1).sum(0)
    size = values.shape[axis] if places is None else len(places)
    total = torch.zeros(size, dtype=torch.float64, device=values.device)
    squares, square = torch.zeros_like(total), None
    length = len(values)
    if axis and not values.is_cuda:
        length = max(1, CACHED * length // max(values.numel(), 1))
    for piece in values.split(length):
        wide = piece.to(dtype) if places is None else piece.index_select(axis, places).to(dtype)
        if centre is not None:
            wide = wide - centre.view(shape_along(wide, axis))
        if square is None or square.shape != wide.shape:
            square = torch.empty_like(wide)  # written again by every piece: new memory costs more than the squares
        total += reduced(wide, axis, torch.sum)
        squares += reduced(torch.mul(wide, wide, out=square), axis, torch.sum)
    return total, squares


def middle(values: Tensor, axis: int, mean: Tensor) -> Tensor:
    """One value of each place, to which a constant is equal exactly."""
    return values[tuple(slice(None) if d == axis else n // 2 for d, n in enumerate(values.shape))]


def mean_of(values: Tensor, axis: int, mean: Tensor) -> Tensor:
    """The mean of each place."""
    return mean


def shape_along(values: Tensor, axis: int) -> list[int]:
    """Of one value for each place of an axis, so that it broadcasts."""
    return [-1 if dim == axis else 1 for dim in range(values.dim())]


def merged(first: Mapping[str, Moments], others: Iterable[Mapping[str, Moments]]) -> dict[str, Moments]:
    """The moments of several ranks, place by place, in their order."""
    found = dict(first)
    for other in others:
        for key, value in other.items():
            found[key] = found[key].merged(value) if key in found else value
    return found
