"""Tiny networks, every subset of their neurons: the cut network equals the one in which they are silenced.

The silenced network is made by forward hooks on the activation modules, without anything of the graph but the names.
"""

import copy
from itertools import product

import pytest
import torch
from torch import nn

import comparing
import demp
import nets
from demp.surgery import Limits, LiveModel, VerifyOptions, execute, plan_cut
from thinning import mostly_slow

NETWORKS = {
    "mlp": lambda: (nets.mlp(3, 3, 3, 2), (torch.randn(4, 3),)),
    "normed": lambda: (nets.mlp(3, 3, 2, 2, norm=True), (torch.randn(4, 3),)),
    "flatten": lambda: nets.plain(1, (2, 2), norm=False),
    "stream": lambda: nets.residual((3, 3), inner=2),
    "projection": lambda: nets.residual((2, 3), inner=2),
    "pre-activation": lambda: nets.residual((3, 3), inner=2, pre=True),
    "dense": lambda: nets.dense(2, 2, 1, "relu"),
    "branches": lambda: nets.branches((2, 1)),
    "separable": lambda: nets.separable(2, 3, 1, "gelu"),
    "tokens": lambda: nets.tokens(3, 3),
    "same position of every group": lambda: grouped(nn.Conv1d(6, 6, 3, groups=2, padding=1)),
    "whole groups": lambda: grouped(nn.Conv1d(6, 6, 3, groups=3, padding=1)),
    "transposed, same position": lambda: grouped(nn.ConvTranspose1d(6, 6, 3, groups=2)),
    "transposed, whole groups": lambda: grouped(nn.ConvTranspose1d(6, 6, 3, groups=3)),
    "activation in steps": lambda: (
        nn.Sequential(nn.Linear(3, 4), nets.Forward(lambda s, x: x * torch.sigmoid(x)), nn.Linear(4, 2)),
        (torch.randn(4, 3),),
    ),
}


def grouped(mix: nn.Module) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Two layers of six channels around a grouped convolution."""
    return nn.Sequential(nn.Conv1d(2, 6, 1), nn.ReLU(), mix, nn.ReLU(), nn.Conv1d(6, 2, 1)), (torch.randn(2, 2, 4),)


def channels(graph: demp.NeuronGraph, layer, gone: torch.Tensor) -> torch.Tensor:
    """Which channels of a layer are gone: several channels may be one neuron."""
    for slot in graph.slots:
        if slot.tensor.endswith("bias") and set(slot.classes.tolist()) == set(layer.classes.tolist()):
            return gone[slot.classes]
    return gone[layer.classes]


def silenced(model: nn.Module, inputs, masks: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Outputs with the masked neurons of every activation module set to zero."""

    def hook(mask):
        def silence(module, args, out):
            axis = 1 if out.shape[1] == len(mask) else out.dim() - 1
            shape = [-1 if dim == axis else 1 for dim in range(out.dim())]
            return out * (~mask).to(out.dtype).view(shape)

        return silence

    handles = [model.get_submodule(name).register_forward_hook(hook(mask)) for name, mask in masks.items()]
    out = comparing.outputs(model, inputs)
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("most", mostly_slow((12, 1000), quick=(12,)))
@pytest.mark.parametrize("network", NETWORKS)
def test_every_subset(network, most):
    """Or every n-th, where there are more than ``most``."""
    model, inputs = NETWORKS[network]()
    nets.settle(model)
    inputs = tuple(x.double() for x in inputs)
    graph = demp.trace(model, inputs)
    removable = torch.cat([layer.classes[layer.removable] for layer in graph.layers]).unique()
    subsets = list(product([False, True], repeat=len(removable)))
    for subset in subsets[:: max(1, len(subsets) // most)] + subsets[-1:]:
        chosen = graph.none_removed()
        chosen[removable] = torch.tensor(subset)
        dead = {layer.name: chosen[layer.classes] for layer in graph.layers}
        small = copy.deepcopy(model)
        plan = plan_cut(graph.dense, dead, Limits())
        report, _ = execute(LiveModel(small), plan, VerifyOptions(inputs, exact=False))
        masks = {layer.name: channels(graph, layer, plan.after.removed) for layer in graph.layers}
        assert comparing.gap(silenced(model, inputs, masks), comparing.outputs(small, inputs)) < 1e-10
        assert report.removed == sum(int(plan.after.removed[layer.classes].sum()) for layer in graph.layers)
        assert report.held or torch.equal(plan.after.removed, chosen)
