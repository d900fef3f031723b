"""Neurons that are really dead.

``kill`` works on what makes a neuron (weights, biases, norm scales), never on what reads it: a test that cuts killed
neurons fails when the graph took the wrong slices.
"""

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from comparing import tensors_of
from demp.graph import NeuronGraph

LOWEST = {torch.float64: -1e100, torch.float32: -1e12, torch.bfloat16: -1e12, torch.float16: -1e4}
ZERO_BELOW = ("relu", "relu6", "hardswish")
"""Kinds of activation that are also zero far below zero."""


def classes_of(graph: NeuronGraph, dead: Mapping[str, Any]) -> Tensor:
    """The classes of the named neurons, as a boolean over all classes."""
    chosen = graph.none_removed()
    for name, indices in dead.items():
        chosen[graph.layer(name).classes[torch.as_tensor(indices, dtype=torch.long)]] = True
    return chosen


@torch.no_grad()
def kill(model: nn.Module, graph: NeuronGraph, dead: Mapping[str, Any], low: float = -100.0) -> None:
    """Make neurons exactly zero at every read: what makes them becomes zero.

    Their biases become ``low`` where only ReLU and the like follow, but for norms behind activations. In networks where
    something reads a norm without an activation between them (MobileNet, ShuffleNet), ``low`` must be zero. Of what a
    residual sum adds to its stream, biases become low enough for any stream.
    """
    tensors, dying = tensors_of(model), classes_of(graph, dead)
    below = torch.ones(graph.classes, dtype=torch.bool)
    for layer in graph.layers:
        below[layer.classes] &= layer.activation in ZERO_BELOW
    summed = torch.zeros(graph.classes, dtype=torch.bool)
    for join in graph.joins:
        summed[join.branch] = True
    producers = {norm.shift: norm.producer for norm in graph.norms}
    makers = {pair for layer in graph.layers for pair in layer.producers}  # a tied weight makes and reads
    readers = {(read.weight, read.weight_axis) for read in graph.reads} - makers
    for slot in graph.slots:
        tensor = tensors[slot.tensor]
        positions = dying[slot.classes].nonzero().flatten()
        if (slot.tensor, slot.axis) in readers or slot.tensor.endswith(("running_mean", "running_var")):
            continue
        for position in positions.tolist():
            shifted = producers.get(slot.tensor) is not None and below[slot.classes[position]]
            under = LOWEST[tensor.dtype] if summed[slot.classes[position]] else low
            tensor.select(slot.axis, position).fill_(under if shifted else 0.0)


def live_anyway(graph: NeuronGraph) -> Tensor:
    """Heads of a query whose one key and value live on with the others: nothing that makes them makes them zero."""
    readers = {(read.weight, read.weight_axis) for read in graph.reads}
    found = graph.none_removed()
    for layer in graph.layers:
        if layer.activation == "attention":
            made = sum(
                int((slot.classes == layer.classes[0]).sum())
                for slot in graph.slots
                if (slot.tensor, slot.axis) not in readers and len(graph.shapes[slot.tensor]) > 1
            )
            read = sum(int((seen.classes == layer.classes[0]).sum()) for seen in graph.reads)
            found[layer.classes] = made == read
    return found


def some_dead(graph: NeuronGraph, share: float, rng: random.Random) -> dict[str, list[int]]:
    """A random share of the removable neurons, coupled ones together; at least one of each layer stays."""
    removable = graph.none_removed()
    for layer in graph.layers:
        removable[layer.classes[layer.removable]] = True
    removable &= ~live_anyway(graph)
    chosen = removable & torch.tensor([rng.random() < share for _ in range(graph.classes)])
    for layer in graph.layers:
        if bool(chosen[layer.classes].all()):
            chosen[layer.classes[0]] = False
    above = [layer for layer in graph.layers if layer.activation not in ZERO_BELOW]
    zero_below = set(range(graph.classes)) - {c for layer in above for c in layer.classes.tolist()}
    for join in graph.joins:  # other activations are zero behind a sum only if both sides are
        for stream, branch in zip(join.stream[join.source].tolist(), join.branch[join.target].tolist(), strict=True):
            if branch not in zero_below and not chosen[stream]:
                chosen[branch] = False
    found = {layer.name: chosen[layer.classes].nonzero().flatten().tolist() for layer in graph.layers}
    return {name: indices for name, indices in found.items() if indices}


def killed(
    model: nn.Module, graph: NeuronGraph, share: float = 0.4, seed: int = 0, low: float = -100.0
) -> dict[str, list[int]]:
    """Kill a random share of the removable neurons and name them."""
    dead = some_dead(graph, share, random.Random(seed))
    kill(model, graph, dead, low)
    return dead
