"""The five models of the reference trainer: counts, FLOPs, and exact cuts with every activation."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import comparing
import demp
import killing
import nets
from demp.train.models import ACTIVATIONS, build, resnet18, resnet50, vgg16
from thinning import covering

SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"image_size": 8, "in_channels": 1, "width": 0.1}, (2, 1, 8, 8)),
    "resnet18": ({"width": 0.1}, (2, 3, 16, 16)),
    "vgg16": ({"width": 1 / 64, "image_size": 32}, (2, 3, 32, 32)),
    "resnet50": ({"width": 1 / 16, "cifar_stem": True}, (2, 3, 16, 16)),
    "vit_b_16": ({"image_size": 16, "patch": 4, "depth": 2, "dim": 32, "heads": 2, "width": 0.5}, (2, 3, 16, 16)),
}


@pytest.mark.parametrize(("name", "activation"), covering(SMALL, ACTIVATIONS))
def test_exact_after_two_cuts(name, activation):
    options, shape = SMALL[name]
    model = nets.settle(build(name, num_classes=5, activation=activation, **options))
    inputs = (torch.randn(shape, dtype=torch.float64),)
    for seed in range(2):
        graph = demp.trace(model, inputs)
        assert graph.vehicle == "meta" and not any(refusal.name in graph.index for refusal in graph.refused)
        dead = killing.killed(model, graph, 0.4, seed)
        before = comparing.outputs(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert report.removed == sum(map(len, dead.values())) - kept_after_all(report) > 0
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10


def kept_after_all(report: demp.CutReport) -> int:
    """Dead neurons that stayed for a minimum width."""
    return sum(int(note.split()[0]) for note in report.held.values())


def traced(builder, size: int, batch: int = 1, **options) -> tuple[nn.Module, tuple, demp.NeuronGraph]:
    with torch.device("meta"):
        model = builder(**options)
    inputs = (torch.empty(batch, 3, size, size, device="meta"),)
    return model, inputs, demp.trace(model, inputs)


def counted(model: nn.Module, inputs: tuple) -> int:
    with FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return counter.get_total_flops()


def test_neurons_of_the_paper():
    assert traced(resnet18, 32)[2].dense.neurons == 3904
    assert traced(resnet50, 224)[2].dense.neurons == 22720


@pytest.mark.parametrize(("builder", "size"), [(resnet18, 32), (vgg16, 32), (resnet50, 64)])
def test_flops_agree_with_torch(builder, size):
    model, inputs, graph = traced(builder, size, batch=2)
    assert graph.dense.flops() == counted(model, inputs) > 0


def test_resnet50_without_the_inside_of_its_branches():
    """Published fixture: 7,552 neurons; 19.04 % of the parameters stay; FLOPs 0.117, by the paper's count 0.318."""
    model, inputs, graph = traced(resnet50, 224)
    none, gone = graph.none_removed(), graph.none_removed()
    for layer in graph.layers:
        if layer.name.endswith(("act1", "act2")):
            assert layer.coupled == ()
            gone[layer.classes] = True
    assert graph.dense.neurons - graph.at(gone).neurons == 7552
    dense = graph.at(none).flops()
    assert dense == counted(model, inputs) == pytest.approx(8.178e9, rel=1e-4)
    parameters = {name for name, _ in model.named_parameters()}
    assert graph.at(none).parameters(parameters) == 25_557_032
    assert graph.at(gone).parameters(parameters) / 25_557_032 == pytest.approx(0.1904, abs=5e-5)
    assert graph.at(gone).flops() / dense == pytest.approx(0.117, abs=5e-4)
    assert graph.at(gone).flops(paper=True) / dense == pytest.approx(0.318, abs=5e-4)


def test_flops_of_a_cut_network_agree_with_torch():
    model = nets.settle(build("resnet18", num_classes=5, width=0.15))
    inputs = (torch.randn(1, 3, 16, 16, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    dead = killing.killed(model, graph, 0.5)
    gone = killing.classes_of(graph, dead)
    report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
    assert not report.held
    assert graph.at(gone).flops() == report.flops_after == counted(model, inputs) == demp.cost(model, inputs).flops
