"""Costs against hand counts and torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import comparing
import demp
import killing
import nets


def counted(model: nn.Module, inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        comparing.outputs(model, inputs)
    return counter.get_total_flops()


def test_an_mlp_by_hand():
    model, inputs = nets.mlp(4, 8, 3), (torch.randn(5, 4),)
    cost = demp.cost(model, inputs)
    assert cost.to_dict() == {
        "neurons": 8,
        "parameters": 4 * 8 + 8 + 8 * 3 + 3,
        "flops": 2 * 5 * (4 * 8 + 8 * 3),
        "paper_flops": 2 * 5 * (4 * 8 + 8 * 3),
        "bytes": 4 * (4 * 8 + 8 + 8 * 3 + 3),
    }
    demp.cut(model, {"1": [0, 1, 2]}, example_inputs=inputs, exact=False)
    cost = demp.cost(model, inputs)
    assert (cost.neurons, cost.parameters) == (5, 4 * 5 + 5 + 5 * 3 + 3)
    assert cost.flops == 2 * 5 * (4 * 5 + 5 * 3)
    assert cost.paper_flops == 2 * 5 * (4 * 5 + 8 * 3)


def test_bytes_count_buffers_in_their_own_types():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(torch.bfloat16)
    cost = demp.cost(model, (torch.randn(1, 3, 2, 2, dtype=torch.bfloat16),))
    assert cost.bytes == 2 * (12 + 4 + 4 * 4) + 8


NETWORKS = {
    "plain 1d": lambda: nets.plain(1),
    "plain 2d, strided": lambda: nets.plain(2, stride=2),
    "plain 3d, dilated": lambda: nets.plain(3, dilation=2),
    "residual": lambda: nets.residual((4, 6), stride=2),
    "dense": nets.dense,
    "branches": nets.branches,
    "separable": nets.separable,
    "gated": nets.gated,
    "tokens": nets.tokens,
    "grouped": lambda: (nn.Conv2d(4, 6, 3, groups=2), (torch.randn(2, 4, 5, 5),)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2), (torch.randn(2, 4, 5, 5),)),
    "two filters per channel": lambda: (nn.Conv2d(4, 8, 3, groups=4), (torch.randn(2, 4, 5, 5),)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_agree_with_torch(name):
    model, inputs = NETWORKS[name]()
    assert demp.cost(model, inputs).flops == counted(model, inputs) > 0


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("grouped", "transposed", "two filters per channel")]
)
def test_flops_after_a_cut_agree_with_torch(name):
    model, inputs = NETWORKS[name]()
    model.double()
    inputs = tuple(x.double() for x in inputs)
    graph = demp.trace(model, inputs)
    dead = killing.killed(model, graph, 0.5)
    predicted = graph.at(killing.classes_of(graph, dead)).flops()
    report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
    found = demp.cost(model, inputs)
    assert not report.held
    assert predicted == report.flops_after == found.flops == counted(model, inputs)
    assert found.flops <= found.paper_flops <= report.flops_before


def test_flops_scale_with_the_batch():
    model, inputs = nets.residual()
    one = demp.cost(model, (inputs[0][:1],))
    four = demp.cost(model, (inputs[0].repeat(2, 1, 1, 1),))
    assert four.flops == 4 * one.flops
    demp.cut(model, {"2.act1": [0]}, example_inputs=inputs, exact=False)
    one, four = demp.cost(model, (inputs[0][:1],)), demp.cost(model, (inputs[0].repeat(2, 1, 1, 1),))
    assert (four.flops, four.paper_flops) == (4 * one.flops, 4 * one.paper_flops)


def test_paper_flops_do_not_depend_on_how_the_cuts_were_split():
    inputs = (torch.randn(2, 4),)
    at_once, in_steps = nets.mlp(4, 8, 6, 3), nets.mlp(4, 8, 6, 3)
    demp.cut(at_once, {"1": [0, 1, 2, 3], "3": [0, 1]}, example_inputs=inputs, exact=False)
    for dead in ({"1": [0]}, {"1": [0, 1], "3": [0]}, {"1": [0], "3": [0]}):
        demp.cut(in_steps, dead, example_inputs=inputs, exact=False)
    assert demp.cost(at_once, inputs) == demp.cost(in_steps, inputs)


def test_a_graph_at_hand_is_not_traced_again():
    model, inputs = nets.mlp(4, 8, 3), (torch.randn(5, 4),)
    graph = demp.trace(model, inputs)
    assert demp.cost(model, None, graph=graph) == demp.cost(model, inputs)
