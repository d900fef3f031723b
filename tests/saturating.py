"""Neurons that are really constant, without being zero: the twin of `killing`."""

import copy
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from comparing import tensors_of
from demp.activity import Criterion, Detection, probe
from demp.activity.observe import observing
from demp.activity.tally import Tally
from demp.graph import NeuronGraph
from killing import classes_of

CONSTANT = Criterion(kind="saturated", eps=1e-9)
"""Constant but for rounding."""


@torch.no_grad()
def saturate(model: nn.Module, graph: NeuronGraph, chosen: Mapping[str, Any], value: Any = 1.0) -> None:
    """Make neurons the same for every input, as far as what makes them can: weights 0, biases and shifts ``value``.

    ``value`` is a number, or a function of the class.
    """
    tensors, dying = tensors_of(model), classes_of(graph, chosen)
    of = value if callable(value) else lambda c: value
    producers = {norm.shift: norm.producer for norm in graph.norms}
    makers = {pair for layer in graph.layers for pair in layer.producers}
    readers = {(read.weight, read.weight_axis) for read in graph.reads} - makers
    for slot in graph.slots:
        tensor = tensors[slot.tensor]
        if (slot.tensor, slot.axis) in readers or slot.tensor.endswith(("running_mean", "running_var")):
            continue
        for position in dying[slot.classes].nonzero().flatten().tolist():
            shift = slot.tensor in producers
            tensor.select(slot.axis, position).fill_(of(int(slot.classes[position])) if shift else 0.0)


def some_constant(
    model: nn.Module, graph: NeuronGraph, inputs: Any, share: float, seed: int
) -> tuple[dict[str, Tensor], Detection]:
    """Saturate a random share of the removable neurons; those that are constant at every read, and what is detected."""
    rng = random.Random(seed)
    chosen = {
        layer.name: [i for i in layer.removable.nonzero().flatten().tolist() if rng.random() < share]
        for layer in graph.layers
    }
    values = {c: rng.choice([-1, 1]) * rng.uniform(0.3, 2.0) for c in range(graph.classes)}
    saturate(model, graph, chosen, values.__getitem__)
    detection = probe(model, graph.dense, [inputs], CONSTANT)
    training = in_training(model, graph, inputs)
    if training is None:
        return detection.dead, detection
    flat, means = training.detect(), training.flatness()
    same = {name: (means[name].mean - mean).abs() < 1e-9 for name, mean in detection.means.items()}
    return {n: dead & flat[n] & same.get(n, torch.ones_like(dead)) for n, dead in detection.dead.items()}, detection


def in_training(model: nn.Module, graph: NeuronGraph, inputs: Any) -> Tally | None:
    """What readers see in training mode; None where a batch norm needs more than one value."""
    model, tally = copy.deepcopy(model).train(), Tally(graph.dense, CONSTANT)
    try:
        with torch.no_grad(), observing(model, graph, lambda read, value: tally.add(read, value, read.axis)):
            model(*inputs)
    except ValueError:
        return None
    return tally
