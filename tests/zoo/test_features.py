"""Each feature of PyTorch code: offered and cut exactly, or refused with its reason."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from feature_parts import doubled
from features import FEATURES
from thinning import covering


@pytest.mark.parametrize("name", FEATURES)
def test_feature(name):
    feature = FEATURES[name]
    model, inputs = feature.make()
    model, inputs = nets.settle(model), doubled(inputs)
    for seed in range(feature.again):
        graph = demp.trace(model, inputs)
        offered = {layer.name: int(layer.removable.sum()) for layer in graph.layers}
        if seed == 0:
            assert {one: n for one, n in offered.items() if n or one in feature.offered} == feature.offered, (
                graph.refused
            )
            assert all(any(refusal.name == one for refusal in graph.refused) for one, n in offered.items() if n == 0)
            assert any(feature.refused in refusal.reason for refusal in graph.refused) or not feature.refused
        dead = killing.killed(model, graph, 0.4, seed)
        before = comparing.outputs(model, copy.deepcopy(inputs))
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert comparing.gap(before, comparing.outputs(model, copy.deepcopy(inputs))) < 1e-10
        assert report.removed == sum(map(len, dead.values())) or report.held
        assert bool(report.removed) == bool(any(offered.values())) or seed


COUNTING = (
    "grouped convolution, few groups",
    "grouped convolution, many groups",
    "transposed, many groups",
    "InstanceNorm on the axis",
    "HF Conv1D",
    "experts in one parameter",
)


@pytest.mark.parametrize("name", COUNTING)
def test_saved_and_loaded(name, tmp_path):
    """Numbers in attributes come back with the tensors."""
    model, inputs = FEATURES[name].make()
    model, inputs = nets.settle(model), doubled(inputs)
    demp.cut(model, killing.killed(model, demp.trace(model, inputs), 0.4), example_inputs=inputs)
    demp.save(model, tmp_path / "model")
    loaded = demp.load(lambda: FEATURES[name].make()[0].double(), tmp_path / "model").eval()
    assert comparing.gap(comparing.outputs(model, inputs), comparing.outputs(loaded, inputs)) == 0.0


def test_a_grouped_reader_is_left_out_of_a_fold():
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.GELU(), nn.Conv1d(6, 6, 1, groups=2), nn.GELU(), nn.Conv1d(6, 2, 1))
    inputs = (torch.randn(2, 2, 4),)
    report = demp.cut(model, {"1": [1], "3": [0]}, example_inputs=inputs, exact=False, fold=True)
    assert report.removed == 2 and (model[2].groups, model[2].in_channels, model[2].out_channels) == (2, 4, 4)


def fork(s, x):
    h = F.relu(s.fc(x))
    inner = F.relu(s.one.up(h)) if float(x.detach().sum()) > -1e9 else F.relu(F.linear(h, s.other))
    return s.head(F.relu(s.one.down(inner)))


def test_a_parameter_that_did_not_run_keeps_what_it_may_read():
    one = nets.Forward(lambda s, x: x, up=nn.Linear(8, 5), down=nn.Linear(5, 4))
    parts = {"fc": nn.Linear(6, 8), "one": one, "head": nn.Linear(4, 2)}
    graph = demp.trace(nets.Forward(fork, other=nn.Parameter(torch.randn(5, 8)), **parts), (torch.randn(3, 6),))
    assert not any(bool(layer.removable.any()) for layer in graph.layers)
    assert all("in sight of other, which did not run" in refusal.reason for refusal in graph.refused)


def test_an_expert_that_did_not_run_leaves_the_inside_of_the_others_free():
    model = FEATURES["experts in a list"].make()[0]
    with torch.no_grad():
        model.router.bias[2] = -1e9
    graph = demp.trace(model, (torch.randn(32, 6),))
    assert {layer.name: int(layer.removable.sum()) for layer in graph.layers} == {"experts.0.1": 8, "experts.1.1": 8}


def test_an_expert_without_rows_tells_nothing():
    """Its neurons are judged by other batches, and are alive while there is none."""

    def forward(s, x):
        rows = (x[:, 0] > 0).nonzero().flatten()
        return x.index_add(0, rows, s.down(F.relu(s.up(x[rows]))))

    model = nets.settle(nets.Forward(forward, up=nn.Linear(6, 4), down=nn.Linear(4, 6)))
    full, none = torch.rand(8, 6).double(), -torch.rand(8, 6).double()
    graph = demp.trace(model, (full,))
    killing.kill(model, graph, {"relu": [1]})
    assert demp.alive(model, [(none,)], graph=graph)["relu"].all()
    assert not demp.alive(model, [(none,), (full,)], graph=graph)["relu"][1]


def test_a_use_that_the_trace_did_not_see_is_judged_too():
    """The loop runs once while the model is read and twice while neurons are judged."""

    def forward(s, x, times=1):
        h = F.relu(s.fc(x))
        for _ in range(times):
            h = F.relu(s.mix(h))
        return s.head(h)

    model = nets.settle(nets.Forward(forward, fc=nn.Linear(6, 4), mix=nn.Linear(4, 4), head=nn.Linear(4, 2)))
    x = torch.randn(8, 6).double()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"relu": [1]})
    assert not demp.alive(model, [(x,)], graph=graph)["relu"][1]
    assert demp.alive(model, [{"x": x, "times": 2}], graph=graph)["relu"][1]


@pytest.mark.parametrize(
    ("name", "mask"),
    covering(
        (*COUNTING, "transposed, few groups", "GELU in steps", "experts in a list"),
        ("neuron-gradient", "weight-gradient", "last-check"),
    ),
)
def test_a_run_with_noise_and_cuts(name, mask):
    """What is new in the graph is known to the pruner: penalty, masks of the noise, checks, cuts."""
    model, inputs = FEATURES[name].make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    options = {"period": 3, "peak_strength": 0.1, "live_mask": mask, "criterion": "epsilon", "eps": 1.3}
    pruner = demp.DemP(model, optimizer, example_inputs=inputs, batches=[inputs], total_steps=9, **options)
    for _ in range(9):
        optimizer.zero_grad()
        model.train()(*inputs).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert sum(report.removed for report in pruner.history) > 0
