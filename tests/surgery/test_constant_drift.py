"""What a cut of saturated neurons may change: the drift, its bound, and who goes first under it."""

import copy
import math

import pytest
import torch
from test_constants import constant_neurons, cut, drift
from torch import Tensor, nn, optim

import demp
import nets
from demp.activity import Criterion, probe
from demp.errors import UsageError
from demp.surgery import ConstantRules, Limits, plan_cut


def wavering(noise: float) -> tuple[nn.Module, tuple[Tensor]]:
    """Eight neurons that are constant but for noise: the higher their number, the more of it."""
    model = nets.settle(nn.Sequential(nn.Linear(4, 12), nn.Identity(), nn.GELU(), nn.Linear(12, 3)))
    with torch.no_grad():
        for neuron in range(8):
            model[0].weight[neuron] = model[0].weight[8] * noise * 2**neuron / 128
            model[0].bias[neuron] = 0.7
    return model, (torch.randn(64, 4, dtype=torch.float64),)


def test_drift_is_the_change_of_the_outputs_and_is_bounded():
    model, inputs = wavering(0.5)
    everyone = {"2": list(range(8))}
    free = copy.deepcopy(model)
    report = demp.cut(free, everyone, example_inputs=inputs, constants=True)
    assert report.removed == 8 and report.difference < 1e-10
    assert report.drift == pytest.approx(drift(model, free, inputs), rel=1e-9) and report.drift > 0.01
    small = copy.deepcopy(model)
    bounded = demp.cut(small, everyone, example_inputs=inputs, constants=True, max_drift=report.drift / 3)
    assert 0 < bounded.removed < 8 and bounded.drift <= report.drift / 3
    assert bounded.drift == pytest.approx(drift(model, small, inputs), rel=1e-9)
    assert "less flat than others" in bounded.held["2"]
    none = demp.cut(copy.deepcopy(model), everyone, example_inputs=inputs, constants=True, max_drift=0.0)
    assert not none.happened


def test_the_flattest_go_first():
    model, inputs = wavering(0.5)
    graph = demp.trace(model, inputs)
    detection = probe(model, graph.dense, [inputs], Criterion(kind="saturated", eps=2.0))
    order = detection.deviations["2"][:8].argsort().tolist()
    assert order == list(range(8))
    pruner = demp.DemP(model, optim.SGD(model.parameters(), lr=0.0), example_inputs=inputs, total_steps=2, period=1,
                       criterion="saturated", eps=0.6, max_drift=1e-3, peak_strength=0.0, noise_on="off",
                       batches=[inputs])  # fmt: skip
    pruner.after_step()
    gone = pruner.state.removed[graph.layer("2").classes].nonzero().flatten().tolist()
    assert 0 < len(gone) < 8 and gone == list(range(len(gone)))
    assert pruner.history[0].drift <= 1e-3


def test_a_target_takes_the_flattest():
    model, inputs = wavering(0.5)
    graph = demp.trace(model, inputs)
    pruner = demp.DemP(model, optim.SGD(model.parameters(), lr=0.0), example_inputs=inputs, total_steps=2, period=1,
                       criterion="saturated", eps=0.9, max_drift=None, peak_strength=0.0, noise_on="off",
                       batches=[inputs], target_neuron_sparsity=0.25)  # fmt: skip
    pruner.after_step()
    assert pruner.state.removed[graph.layer("2").classes].nonzero().flatten().tolist() == [0, 1, 2]


def test_the_least_flat_stays_where_a_layer_is_flat_as_a_whole():
    ranking = torch.tensor([0.0, 0.3, 0.9, torch.nan, 0.1])
    model = nets.mlp(3, 4, 2)
    graph = demp.trace(model, (torch.randn(2, 3),))
    flags = {"1": torch.ones(4, dtype=torch.bool)}
    for floor, stay in ((1, [2]), (2, [1, 2]), (3, [1, 2, 0])):
        plan = plan_cut(graph.dense, flags, Limits(floor=floor), ranking)
        kept = (~plan.after.removed[graph.layers[0].classes]).nonzero().flatten().tolist()
        classes = graph.layers[0].classes
        wanted = sorted(ranking[classes].nan_to_num(math.inf).argsort(descending=True, stable=True)[:floor].tolist())
        assert kept == wanted and len(stay) == floor
    first = plan_cut(graph.dense, flags, Limits())
    assert not bool(first.after.removed[graph.layers[0].classes[0]])


def test_what_is_constant_on_the_probe_alone_shows_in_the_drift():
    model, inputs = constant_neurons(nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[2] = torch.tensor([3.0, 0.0, 0.0, 0.0])
    narrow = inputs[0].clone()
    narrow[:, 0] = 0.1
    graph = demp.trace(model, inputs)
    assert bool(probe(model, graph.dense, [(narrow,)], Criterion(kind="saturated")).dead["1"][2])
    report = cut(copy.deepcopy(model), inputs, [2])
    assert report.drift > 0.05 and report.difference < 1e-10
    assert not cut(model, inputs, [2], max_drift=0.02).happened


@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_nonsense_is_refused(value):
    with pytest.raises(UsageError, match="max_drift is"):
        ConstantRules(max_drift=value)
    with pytest.raises(UsageError, match="max_drift is"):
        demp.methods.config_class("demp")(max_drift=value)


def test_a_bound_without_constants_is_refused():
    model, inputs = constant_neurons(nn.Linear(6, 3))
    with pytest.raises(UsageError, match="pass constants=True"):
        demp.cut(model, {"1": [2]}, example_inputs=inputs, max_drift=0.1)
