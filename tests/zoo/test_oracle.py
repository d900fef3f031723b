"""Torch-Pruning as an oracle: where both accept a neuron, the same slices leave with it.

Left out, because Torch-Pruning itself is wrong there: grouped convolutions (it keeps the first positions of each group
whatever was asked, or breaks the forward), norms over the neuron axis (it prunes through LayerNorm and GroupNorm, and
forgets RMSNorm's shape), tied tensors (it breaks the tie), modules used twice and bare parameters (errors).
"""

import random
import warnings

import pytest
import torch
from torch import nn

import demp
import nets
from architectures import make

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning as tp

MODELS = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/vgg16_bn",
    "torchvision/vit_b_32",
    "torchvision/mobilenet_v3_small",
    "torchvision/convnext_tiny",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
    "torchvision/swin_t",
    "torchvision/squeezenet1_1",
    "timm/vit_tiny_patch16_224",
    "timm/inception_v4",
)
LAYERS = 6
OUT = {nn.Linear: tp.prune_linear_out_channels, nn.Conv2d: tp.prune_conv_out_channels}

Slices = set[tuple[str, int, int]]
"""(tensor, axis, index)"""


def ours(graph: demp.NeuronGraph, number: int) -> Slices:
    """What leaves with a class."""
    return {
        (slot.tensor, slot.axis, index)
        for slot in graph.slots
        for index in (slot.classes == number).nonzero().flatten().tolist()
    }


def theirs(group, names: dict[nn.Module, str]) -> Slices:
    """What leaves with a group of Torch-Pruning."""
    found: Slices = set()
    for dependency, indices in group:
        module = dependency.target.module
        if module not in names:
            continue  # an operation without parameters
        takes_input = "in_channels" in dependency.handler.__name__ and not isinstance(module, nn.BatchNorm2d)
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.dim() and not (takes_input and leaf == "bias" and not depthwise):
                axis = 1 if takes_input and tensor.dim() > 1 and not depthwise else 0
                found |= {(f"{names[module]}.{leaf}", axis, index) for index in indices}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", *MODELS])
def test_the_same_slices_leave(name):
    if name == "mlp":
        model, inputs = nets.mlp(6, 8, 7, 3, norm=True).eval(), (torch.randn(2, 6),)
    else:
        model, inputs = make(name)
    graph = demp.trace(model, inputs, joins=False)  # the oracle couples the channels of a stage
    names = {module: path for path, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the oracle, about itself
        oracle = tp.DependencyGraph().build_dependency(model, inputs)
        rng = random.Random(0)
        inner = [layer for layer in graph.layers if bool(layer.removable.all()) and len(layer.producers) == 1]
        chosen = rng.sample(inner, min(LAYERS, len(inner)))
        assert chosen
        for layer in chosen:
            weight, axis = layer.producers[0]
            root = model.get_submodule(weight.rpartition(".")[0])
            number = int(layer.classes[rng.randrange(layer.width)])
            produced = next(slot for slot in graph.slots if (slot.tensor, slot.axis) == (weight, axis))
            positions = (produced.classes == number).nonzero().flatten().tolist()
            group = oracle.get_pruning_group(root, OUT[type(root)], idxs=positions)
            assert theirs(group, names) == ours(graph, number), layer.name
