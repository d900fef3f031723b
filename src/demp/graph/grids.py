"""Channels on their way through a channel shuffle: several axes of a tensor hold one axis of neurons."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.recording import CallSeen


class Settle(Protocol):
    """Labels of a grid as an ordinary tensor.

    ``parts``: the axis of the grid whose entries are taken apart (query, key and value): what lies at one place of all
    of them is one neuron. None: nothing has said so.
    """

    def __call__(self, *, parts: int | None = None) -> Labels:
        """Return the labels that the tensor has as an ordinary one."""
        ...


@dataclass(frozen=True)
class Grid:
    """A tensor in which several axes hold one axis of neurons."""

    axis: Axis
    order: Tensor
    """Position on the axis of each entry of the grid, in the order of its axes; -1 where a neuron was removed."""
    dims: tuple[int, ...]
    """Axes of the tensor that make up the grid, in the order of ``order``."""
    others: dict[int, Axis | None]
    """What lies on the other axes."""
    first: CallSeen
    settle: Settle
    """Labels of the tensor if it is no shuffle after all."""
