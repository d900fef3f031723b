"""Slices of weights that belong to neurons: one index of one axis each, at present widths."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from demp.graph import GraphState, Slot
from demp.parallel import local_piece, sharded_like


class Slices:
    """One axis of a weight, whose indices belong to classes of neurons, at present widths.

    ``classes`` has one entry per index; 0 is that of no neuron. All indices of one class are one group.
    """

    def __init__(self, parameter: nn.Parameter, axis: int, classes: Tensor) -> None:
        self.parameter, self.axis, self.classes = parameter, axis, classes.to(parameter.device)
        self._shape = [1] * parameter.dim()
        self._shape[axis] = -1
        self._others = [a for a in range(parameter.dim()) if a != axis]
        owned, group, counts = classes.unique(return_inverse=True, return_counts=True)
        self._single = len(owned) == len(classes) and bool((classes > 0).all())
        if not self._single:
            nobody = int(len(owned) > 0 and owned[0] == 0)
            rows = group.argsort(stable=True).split(counts.tolist())[nobody:]
            table = nn.utils.rnn.pad_sequence(list(rows), True, len(classes)) if rows else group.new_zeros(0, 1)
            self._members = table.to(parameter.device)
            self._group = torch.where(classes > 0, group - nobody, len(rows)).to(parameter.device)

    def norms(self, weight: Tensor) -> Tensor:
        """``||w_g||`` of every group; its slope at 0 is 0."""
        found = torch.linalg.vector_norm(weight, dim=self._others) if self._others else weight.abs()
        if self._single:
            return found
        padded = torch.cat([found, found.new_zeros(1)])
        return torch.linalg.vector_norm(padded[self._members], dim=1)

    def over_norms(self, weight: Tensor) -> Tensor:
        """``w / ||w_g||``, the gradient of the sum of all norms; 0 where the group is zero or belongs to no neuron."""
        norms = self.norms(weight)
        divisors = torch.where(norms > 0, norms, 1.0)
        if not self._single:
            divisors = torch.cat([divisors, divisors.new_full((1,), math.inf)])[self._group]
        return weight / divisors.view(self._shape)

    def per_index(self, factors: Tensor) -> Tensor:
        """One factor per class, as a tensor that broadcasts against this rank's piece of the weight."""
        mine = factors.to(self.parameter.dtype)[self.classes]
        if self.axis == 0:
            mine = local_piece(sharded_like(mine, self.parameter))
        return mine.view(self._shape)


class PresentSlices:
    """The slices of some axes of one model, made anew only after a cut."""

    def __init__(self, model: nn.Module, slots: Iterable[Slot]) -> None:
        parameters = dict(model.named_parameters())
        self.axes = [(parameters[slot.tensor], slot) for slot in slots if slot.tensor in parameters]
        self._slices: list[Slices] = []
        self._at: GraphState | None = None

    def at(self, state: GraphState) -> list[Slices]:
        """In the order in which they lie."""
        if self._at != state:
            mine = state.owners(slot for _, slot in self.axes)
            self._slices = [Slices(p, slot.axis, c) for (p, slot), c in zip(self.axes, mine, strict=True)]
            self._at = state
        return self._slices
