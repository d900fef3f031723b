"""Where gates multiply: tensor axes whose entries belong to neurons, or to outputs that are none."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from demp.graph import NeuronGraph, Slot

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def gate_slots(graph: NeuronGraph, at: str) -> list[Slot]:
    """The tensor axes that a gate multiplies."""
    slots = {(slot.tensor, slot.axis): slot for slot in graph.slots}
    if at == "activation":
        keys = {(read.weight, read.weight_axis) for read in graph.reads if read.seat is None}
        return [slot for key, slot in slots.items() if key in keys]
    made = {pair for layer in graph.layers for pair in layer.producers}
    normed = {norm.producer for norm in graph.norms if norm.scale is not None}
    keys = {(weight, axis) for weight, axis in made if at == "producer" or weight not in normed}
    for norm in graph.norms:
        if norm.scale is None and norm.shift is not None and (at == "producer" or norm.producer not in normed):
            keys.add((norm.shift, 0))
        if norm.scale is not None and at == "norm":
            keys |= {(norm.scale, 0), *([(norm.shift, 0)] if norm.shift is not None else [])}
    return [slot for key, slot in slots.items() if key in keys]


def along(factors: Tensor, slot: Slot, tensor: Tensor) -> Tensor:
    """Factors laid along one axis of a tensor."""
    shape = [1] * tensor.dim()
    shape[slot.axis] = -1
    return factors.to(tensor.dtype).view(shape)


def layer_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """First names of the weights of linear layers and convolutions."""
    mine = {id(module.weight) for module in model.modules() if isinstance(module, LAYERS)}
    return {name for name, tensor in tensors.items() if id(tensor) in mine}


def output_slots(model: nn.Module, graph: NeuronGraph, tensors: Mapping[str, Tensor]) -> list[Slot]:
    """Output axes of linear layers and convolutions that make no neurons, numbered on from the classes.

    Weights that several modules share, and transposed convolutions, have none.
    """
    neurons = {pair for layer in graph.layers for pair in layer.producers}
    names = {id(tensor): name for name, tensor in tensors.items()}
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    found, number = [], graph.classes
    for module in model.modules():
        if not isinstance(module, LAYERS) or getattr(module, "transposed", False) or uses[id(module.weight)] > 1:
            continue
        if (names.get(id(module.weight), ""), 0) in neurons or id(module.weight) not in names:
            continue
        classes = torch.arange(number, number + len(module.weight), device="cpu")
        number += len(classes)
        own = [module.weight] + ([] if module.bias is None else [module.bias])
        found += [Slot(names[id(tensor)], 0, classes) for tensor in own if id(tensor) in names]
    return found
