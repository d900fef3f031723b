"""How the neurons that a layer reads vary together, gathered in the training forwards of one step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.criteria import Criterion
from demp.activity.tally import Key, key_of
from demp.activity.window import Window
from demp.graph import GraphState, NeuronGraph, Read
from demp.graph.parts import HEADS
from demp.parallel import Context

ROWS = 8192
"""Positions of one forward that are looked at, evenly spaced; more say little more."""
WIDEST = 2048
"""Layers that read more neurons are left out: a matrix of all pairs would cost more than it gives."""


@dataclass(frozen=True)
class Covariance:
    """Of what one consumer reads: neurons by neurons, over examples and positions."""

    matrix: Tensor
    """(neurons, neurons), float64, on the CPU."""
    mean: Tensor
    """(neurons,), likewise."""
    rows: int
    """How many examples and positions it is the mean over, on all ranks."""
    places: Tensor
    """(positions of one neuron, neurons): where they lie on the axis, in the order of memory. Several after a flatten,
    which count as rows."""
    size: tuple[int, ...] = ()
    """Of the maps behind the axis, in the first forward; of several ranks the first's."""


def places_of(read: Read, state: GraphState) -> Tensor:
    """``Covariance.places`` of a consumer; every channel of a head counts for itself."""
    classes = read.classes[state.kept(read.classes)]
    every = torch.arange(len(classes), device="cpu")[None]
    owned, counts = classes.unique(return_counts=True)
    heads = any(state.graph.layers[number].activation == HEADS for number in read.layers)
    if heads or not len(owned) or bool((counts != counts[0]).any()) or bool((owned == 0).any()):
        return every
    return classes.argsort(stable=True).view(len(owned), -1).T.contiguous()


class Covariances:
    """Sums of products of what each consumer reads, about the mean of its first forward; float64, present widths."""

    def __init__(self, state: GraphState, asked: Iterable[Read]) -> None:
        """Of the consumers that are ``asked``."""
        self._here = {key_of(read): places_of(read, state) for read in asked}
        self._sums: dict[Key, tuple[int, Tensor, Tensor | float, Tensor | float]] = {}
        self._sizes: dict[Key, tuple[int, ...]] = {}
        self.seen: set[Key] = set()

    def width(self, read: Read) -> int:
        """How many neurons this consumer has now; -1 for one that is not asked."""
        places = self._here.get(key_of(read))
        return -1 if places is None else places.numel()

    def add(self, read: Read, operand: Tensor, axis: int) -> None:
        """Take one forward at one consumer; one that reads too many neurons, or others than it had, is left out."""
        key = key_of(read)
        if key not in self._here or not is_plain(operand):
            return
        places, size = self._here[key], self._here[key].shape[1]
        if operand.shape[axis] != places.numel() or not 2 <= size <= WIDEST or operand.numel() == 0:
            return
        rows = rows_of(operand.detach().movedim(axis, -1), places)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        count, centre, total, products = self._sums.get(key, (0, rows.mean(0), 0.0, 0.0))
        more, more_products = sums_of(rows - centre)
        self._sums[key] = (count + len(rows), centre, total + more, products + more_products)
        self._sizes.setdefault(key, tuple(operand.shape[axis:][1:]))
        self.seen.add(key)

    def found(self, context: Context) -> dict[Key, Covariance]:
        """Consumer -> covariance of what it reads, over all ranks together.

        A consumer that some rank did not see is left out, and one whose values are not all finite.
        """
        keys = sorted(set.intersection(*map(set, context.gathered(sorted(self.seen)))))
        covariances, sizes = {}, context.gathered(self._sizes)[0]
        for key in keys:
            covariance = replace(self._pooled(key, context), size=sizes[key])
            if bool(covariance.matrix.isfinite().all()):
                covariances[key] = covariance
        return covariances

    def _pooled(self, key: Key, context: Context) -> Covariance:
        count, centre, total, products = self._sums[key]
        rows = int(context.total([count])[0])

        def over_ranks(values: Tensor) -> Tensor:
            """The mean over all rows, from that over this rank's."""
            return values if context.alone else context.mean(values * count) * context.world_size / rows

        shift = torch.as_tensor(total, device="cpu") / count
        own = centre.cpu().double() + shift
        mean = over_ranks(own)
        spread = products / count - torch.outer(shift, shift) + torch.outer(own - mean, own - mean)
        return Covariance(over_ranks(spread), mean, rows, self._here[key])


class CovarianceWindow(Window):
    """Hooks on the modules that read neurons, for the training forwards of one step."""

    def __init__(self, model: nn.Module, graph: NeuronGraph, asked: Sequence[Read]) -> None:
        super().__init__(model, graph, Criterion())
        self._asked = asked
        weights = {read.weight for read in asked}
        self._readers = {path: own for path, own in self._readers.items() if own.keys() & weights}

    def collector(self, state: GraphState) -> Covariances:
        """What collects what is read from now on."""
        return Covariances(state, self._asked)

    def take(self, context: Context) -> dict[Key, Covariance]:
        """Return the covariances since ``open``, and close. Among several ranks all must ask."""
        found = {} if self._collected is None else self._collected.found(context)
        self.close()
        return found


def is_plain(values: Tensor) -> bool:
    """Are these numbers of one shape that may be kept? Not those of nested tensors, and not inside of ``vmap``."""
    internal: Any = torch._C
    wrapping = internal._functorch
    while wrapping.is_functorch_wrapped_tensor(values):
        if wrapping.is_batchedtensor(values):
            return False
        values = wrapping.get_unwrapped(values)
    return not values.is_nested


def rows_of(values: Tensor, places: Tensor) -> Tensor:
    """Of values (..., width) the examples and positions that are looked at, as (rows, neurons) in the order of places.

    Rows are taken before anything is copied, so that large maps cost no memory.
    """
    values = values[None] if values.dim() == 1 else values
    positions, lengths = len(places), values.shape[:-1]
    every = (lengths.numel() * positions // ROWS) | 1  # odd, so that it does not meet the same place of every image
    chosen = torch.arange(0, lengths.numel() * positions, every, device=values.device)
    where = torch.unravel_index(chosen // positions, lengths)
    if positions == 1:
        return values[where][:, places[0].to(values.device)]
    return values[(*(index[:, None] for index in where), places.to(values.device)[chosen % positions])]


def sums_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows, and of their products; float64 on the CPU, since some devices (Apple's) know no float64."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows.sum(0).cpu().double(), (rows.T @ rows).cpu().double()
