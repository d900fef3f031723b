"""Fold the constant part of removed neurons into what their readers add (optional; for activations that are not zero).

A neuron of GELU or LeakyReLU that counts as dead still speaks a little. Its mean is a constant to every reader: it
moves into the reader's bias, or into the running mean of the batch norm that follows. At the borders of a padded
convolution this is an approximation, so the fold is kept only if it brings the outputs closer to those before the cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from demp.activity.observe import named_tensors, observing, quiet
from demp.graph import NeuronGraph, Read
from demp.graph.forward import as_inputs
from demp.graph.order import moved, places, positions
from demp.surgery.shrink import Ledger


@dataclass(frozen=True)
class Shift:
    """What a tensor must gain so that its reader forgets nothing of the mean (present widths)."""

    tensor: str
    values: Tensor


def constants(model: nn.Module, graph: NeuronGraph, before: Tensor, after: Tensor, example_inputs: Any) -> list[Shift]:
    """Shifts that replace the neurons about to go, from their means on the example inputs."""
    args, kwargs = as_inputs(example_inputs)
    tensors = named_tensors(model)
    shifts: list[Shift] = []
    standing = places(graph, before)

    def collect(read: Read, operand: Tensor) -> None:
        if read.seat is not None:
            return
        present = read.classes[positions(read.classes, standing)]
        dying = after[present].to(operand.device)
        home = absorber(graph, read.weight, tensors)
        if home is None or not bool(dying.any()):
            return
        mean = operand.float().movedim(read.axis, 0).flatten(1).mean(1) * dying
        weight = tensors[read.weight].detach().float()
        axis = read.weight_axis
        if weight.shape[axis] != len(mean):
            return  # a grouped convolution: every group has a constant of its own
        lost = (weight.movedim(axis, 0).flatten(1) * mean[:, None]).sum(0)
        rest = [size for dim, size in enumerate(weight.shape) if dim != axis]
        name, sign = home
        values = sign * lost.view(rest[0], -1).sum(1)
        if values.shape == tensors[name].shape:
            shifts.append(Shift(name, values))

    with quiet(model), observing(model, graph, collect):
        model(*args, **kwargs)
    return shifts


def absorber(graph: NeuronGraph, weight: str, tensors: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """The tensor that takes a reader's constant, and with which sign: its bias, or the running mean that follows."""
    for norm in graph.norms:
        if norm.producer == weight and norm.scale is None and norm.shift is not None and norm.shift in tensors:
            return norm.shift, 1.0
    for norm in graph.norms:
        if norm.producer == weight and norm.scale is not None:
            mean = norm.scale.rpartition(".")[0] + ".running_mean"
            if mean in tensors:
                return mean, -1.0
    return None


def apply(
    shifts: list[Shift],
    graph: NeuronGraph,
    before: Tensor,
    after: Tensor,
    tensors: Mapping[str, Tensor],
    ledger: Ledger,
) -> None:
    """Add the shifts to the tensors of the cut model."""
    slots = {(slot.tensor, slot.axis): slot.classes for slot in graph.slots}
    for shift in shifts:
        values = shift.values
        classes = slots.get((shift.tensor, 0))
        if classes is not None:
            keep = moved(classes, places(graph, before), places(graph, after))
            values = values[keep.to(values.device)]
        ledger.add(tensors[shift.tensor], values)
