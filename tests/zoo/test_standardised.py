"""Weights that the forward standardises per output channel: outputs may go, inputs may not."""

import copy

import pytest
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional as F

import architectures
import comparing
import demp
import exactly
import killing
import nets

KINDS = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def network(kind) -> nn.Sequential:
    """Standardised, plain, standardised with a bias, standardised depthwise, plain: with a norm in the middle."""
    return nn.Sequential(
        kind(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 7, 3, padding=1), nn.ReLU(),
        kind(7, 6, 3, bias=True), nn.ReLU(), kind(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten(2),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_go_and_inputs_stay(kind):
    model, inputs = nets.settle(network(kind)), (torch.randn(2, 3, 6, 6).double(),)
    graph = demp.trace(model, inputs)
    assert exactly.offered(graph) == {"2": 8, "6": 6, "8": 6}
    assert "4: read by a weight that is standardised over its inputs" in exactly.reasons(graph)
    assert all(exactly.cut_twice(model, inputs))
    assert model[3].out_channels == model[5].in_channels == 7 and model[7].groups == len(model[7].weight) < 6


def test_without_an_input_every_output_would_change():
    """Why the inputs stay: the same function with a dead input left out is another one."""
    layer, x = StdConv2d(4, 3, 1).double(), torch.randn(2, 4, 5, 5).double()
    x[:, 1] = 0
    small = StdConv2d(3, 3, 1).double()
    with torch.no_grad():
        small.weight.copy_(layer.weight[:, [0, 2, 3]])
    assert (layer(x) - small(x[:, [0, 2, 3]])).abs().amax((0, 2, 3)).min() > 1e-3


def test_the_gain_scales_a_neuron():
    """Its rows alone say nothing of its size: mean and deviation are taken out of them."""
    graph = demp.trace(network(ScaledStdConv2d), (torch.randn(2, 3, 6, 6),))
    assert {(norm.scale, norm.shift) for norm in graph.norms if norm.producer == "5.weight"} == {
        ("5.gain", "5.bias"),
        (None, "5.bias"),
    }


def test_a_budget_fades_the_gain():
    model, x = nets.settle(network(ScaledStdConv2d)).float(), torch.randn(8, 3, 6, 6)
    exactly.lands_exactly(model, x, "neurons=0.6", 8)


@pytest.mark.slow
def test_the_last_convolution_of_a_normaliser_free_network():
    model = architectures.timm.create_model("nf_regnet_b0", num_classes=7).eval()
    graph = demp.trace(model, (torch.rand(2, 3, 32, 32),))
    assert bool(graph.layer("final_act").removable.all()) and "standardised over its inputs" in exactly.reasons(graph)


def test_a_multiple_of_a_parameter_makes_neurons():
    model = nets.Forward(
        lambda s, x: s.head(F.relu(F.linear(x, 0.3 * s.weight, s.bias))),
        weight=nn.Parameter(torch.randn(8, 6)),
        bias=nn.Parameter(torch.randn(8)),
        head=nn.Linear(8, 2),
    ).double()
    assert all(exactly.cut_twice(model, (torch.randn(4, 6).double(),)))


def test_batch_statistics_over_neurons_keep_them():
    """A batch norm over the tokens measures all neurons in training; in evaluation it treats each alike."""
    model = nets.Forward(
        lambda s, x: s.head(F.relu(s.norm(F.relu(s.fc(x))))),
        fc=nn.Linear(6, 8),
        norm=nn.BatchNorm1d(5),
        head=nn.Linear(8, 2),
    ).double()
    graph = demp.trace(model, (torch.randn(3, 5, 6).double(),))
    assert not exactly.offered(graph) and "run over the neuron axis" in exactly.reasons(graph)


def test_a_depthwise_group_takes_its_channel_along():
    model = nets.settle(network(StdConv2d))
    inputs = (torch.randn(2, 3, 6, 6).double(),)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"8": [1, 4]})
    before = comparing.outputs(model, inputs)
    demp.cut(model, {"6": [1, 4], "8": [1, 4]}, example_inputs=inputs, graph=graph)
    assert comparing.gap(before, comparing.outputs(model, copy.deepcopy(inputs))) < 1e-10
    assert model[5].weight.shape[0] == model[7].weight.shape[0] == 4
