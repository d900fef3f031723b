"""The parameters that scale a neuron: their derivative is that of a factor on its output, and at 0 it outputs 0."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
from demp.activity import Criterion, probe
from demp.activity.observe import observing
from demp.regularization import OutputScales, Shrink
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, batch_at, build, examples

NETS = [(PlainNet, IMAGE), (Mlp, VECTOR)]
ZERO_AT_ZERO = [nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh]


def scaled(kind, shape, **options):
    model = build(kind, **options)
    graph = demp.trace(model, (examples(shape),))
    return model, graph, OutputScales(model, graph)


def gate_derivatives(model, graph, x, y, h=1e-6):
    """The derivative of the loss by a factor on each neuron where it is read: central differences, class by class."""

    @torch.no_grad()
    def loss(factors):
        def multiply(read, operand):
            shape = [1] * operand.dim()
            shape[read.axis] = -1
            return operand * factors[graph.dense.present(read.classes)].view(shape)

        with observing(model, graph, multiply):
            return F.cross_entropy(model(x), y)

    found = torch.zeros(graph.classes, dtype=torch.float64)
    for c in range(1, graph.classes):
        step = torch.zeros(graph.classes, dtype=torch.float64)
        step[c] = h
        found[c] = (loss(1 + step) - loss(1 - step)) / (2 * h)
    return found


@pytest.mark.parametrize(("kind", "shape"), NETS)
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU])
def test_sensitivity_is_the_derivative_by_a_factor_on_the_output(kind, shape, act):
    model, graph, scales = scaled(kind, shape, act=act)
    x, y = batch_at(3, shape)
    F.cross_entropy(model.train()(x), y).backward()
    found = scales.sensitivity(graph.dense)
    wanted = gate_derivatives(copy.deepcopy(model), graph, x, y)
    for layer in graph.layers:
        assert torch.allclose(found[layer.classes], wanted[layer.classes], atol=1e-8)


def test_a_block_output_is_scaled_by_the_branch_of_its_block():
    """The stream goes on: what the branch's norm scales is its own part of the sum."""
    model, graph, scales = scaled(ResidualNet, IMAGE)
    F.cross_entropy(model.train()(batch_at(0, IMAGE)[0]), batch_at(0, IMAGE)[1]).backward()
    found = scales.sensitivity(graph.dense)
    norm = model.norm2
    classes = graph.layer("act2").classes
    assert torch.allclose(found[classes], (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach())


def test_no_gradient_no_sensitivity():
    _, graph, scales = scaled(Mlp, VECTOR)
    assert scales.sensitivity(graph.dense) is None


@pytest.mark.parametrize(("kind", "shape"), [*NETS, (ResidualNet, IMAGE)])
@pytest.mark.parametrize("act", ZERO_AT_ZERO)
def test_faded_neurons_are_exactly_zero_and_leave_exactly(kind, shape, act):
    model, graph, scales = scaled(kind, shape, act=act)
    generator = torch.Generator().manual_seed(1)
    going = torch.rand(graph.classes, generator=generator) < 0.5
    going[0] = False
    for join in graph.joins:  # a block's output goes where what the stream brings goes too
        going[join.branch[join.target]] &= going[join.stream[join.source]]
    scales.apply(Shrink(factors=torch.where(going, 0.0, 1.0)), graph.dense)
    detection = probe(model, graph.dense, [examples(shape, seed=9)], Criterion(kind="exact"))
    for layer in graph.layers:
        assert not (going[layer.classes] & ~detection.dead[layer.name]).any()
    x = examples(shape, seed=10)
    with torch.no_grad():
        wanted = model.eval()(x)
    report = demp.cut(
        model,
        {layer.name: going[layer.classes] for layer in graph.layers},
        example_inputs=(examples(shape, seed=9),),
        graph=graph,
    )
    assert report.happened and report.difference < 1e-12
    assert torch.allclose(model(x), wanted, atol=1e-12)


@pytest.mark.parametrize("kind", [PlainNet, ResidualNet])
def test_amounts_are_a_proximal_step_on_the_scales_alone(kind):
    model, graph, scales = scaled(kind, IMAGE)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, -0.3, 0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    amounts = torch.linspace(0, 0.3, graph.classes, dtype=torch.float64)
    scales.apply(Shrink(amounts=amounts), graph.dense)
    owners = {slot.tensor: slot.classes for slot in graph.slots if slot.axis == 0}
    gammas = {norm.scale for norm in graph.norms if norm.scale}
    for name, value in model.state_dict().items():
        old = before[name]
        wanted = old
        if name in gammas:
            wanted = torch.tensor(
                [g.sign() * max(abs(g) - amounts[c], 0.0) for g, c in zip(old, owners[name], strict=True)]
            )
        assert torch.allclose(value, wanted, atol=0, rtol=0)


def test_frozen_scales_are_left_alone_and_said():
    model, graph, scales = scaled(PlainNet, IMAGE)
    model.norm1.requires_grad_(False)
    before = model.norm1.weight.clone()
    scales.apply(Shrink(factors=torch.zeros(graph.classes)), graph.dense)
    assert torch.equal(model.norm1.weight, before) and not model.norm2.weight.any()
    frozen = scales.frozen(graph.dense)
    assert frozen[graph.layer("act1").classes].all() and not frozen[graph.layer("act2").classes].any()


def test_after_a_cut_each_scale_still_belongs_to_its_neuron():
    model, graph, scales = scaled(PlainNet, IMAGE)
    scales.slices(graph.dense)
    removed = graph.none_removed()
    removed[graph.layer("act1").classes[[0, 3]]] = True
    layers = {"act1": removed[graph.layer("act1").classes]}
    demp.cut(model, layers, example_inputs=(examples(IMAGE),), graph=graph, exact=False)
    before = model.norm1.weight.detach().clone()
    factors = torch.ones(graph.classes)
    factors[graph.layer("act1").classes[4]] = 0.5
    scales.apply(Shrink(factors=factors), graph.at(removed))
    assert torch.equal(model.norm1.weight.detach(), before * torch.tensor([1, 1, 0.5, 1], dtype=torch.float64))


def test_sizes_are_those_of_the_scales():
    model, graph, scales = scaled(PlainNet, IMAGE)
    found = scales.sizes(graph.dense)
    assert torch.equal(found[graph.layer("act1").classes], model.norm1.weight.detach().abs())
    assert torch.allclose(found[graph.layer("act3").classes], model.fc.weight.detach().abs().sum(1))
