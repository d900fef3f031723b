"""Copies follow the model: EMA modules, AveragedModel, dicts of averages."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import comparing
import demp
import killing
import nets

X = (torch.randn(4, 2, 6, 6, dtype=torch.float64),)
DEAD = {"2": [0, 3], "4": [1]}


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3, groups=5), nn.ReLU(), nn.Flatten()
    )
    model = nn.Sequential(*model, nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 3))
    return nets.settle(model)


def started() -> tuple[nn.Module, dict]:
    model = network()
    dead = {"2": [0, 3], "4": [0, 3], "7": [1]}
    killing.kill(model, demp.trace(model, X), dead)
    return model, dead


def test_a_deep_copy_follows():
    model, dead = started()
    ema = copy.deepcopy(model)
    with torch.no_grad():
        for p in ema.parameters():
            p.mul_(0.5)
    before, objects = comparing.outputs(ema, X), [id(p) for p in ema.parameters()]
    demp.cut(model, dead, example_inputs=X, copies=[ema])
    assert comparing.gap(before, comparing.outputs(ema, X)) < 1e-10
    assert [id(p) for p in ema.parameters()] == objects and ema[3].groups == 3
    with torch.no_grad():
        for a, b in zip(ema.parameters(), model.parameters(), strict=True):
            a.lerp_(b, 0.1)


@pytest.mark.parametrize("average", [False, True])
def test_a_copy_can_be_saved_and_loaded(average, tmp_path):
    model, dead = started()
    ema = AveragedModel(model) if average else copy.deepcopy(model)
    with pytest.raises(demp.CutError, match="rolled back"):
        demp.cut(model, {"2": [1], "4": [1]}, example_inputs=X, copies=[ema])
    assert demp.surgery.record_of(ema) is None
    demp.cut(model, {"7": [1]}, example_inputs=X, copies=[ema])
    demp.cut(model, {"2": dead["2"], "4": dead["4"]}, example_inputs=X, copies=[ema])
    inside = ema.module if average else ema
    with torch.no_grad():
        for p in inside.parameters():
            p.mul_(0.5)
    loaded = demp.load(network, demp.save(inside, tmp_path / "ema"))
    assert comparing.gap(comparing.outputs(inside, X), comparing.outputs(loaded, X)) == 0.0
    assert demp.surgery.record_of(loaded).kept.keys() == demp.surgery.record_of(model).kept.keys()


@pytest.mark.parametrize("buffers", [False, True])
def test_an_averaged_model_follows_and_updates(buffers):
    model, dead = started()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    ema.update_parameters(model)
    before = comparing.outputs(ema, X)
    demp.cut(model, dead, example_inputs=X, copies=[ema])
    assert comparing.gap(before, comparing.outputs(ema, X)) < 1e-10
    ema.update_parameters(model)
    assert int(ema.n_averaged) == 2


def test_a_dict_of_averages_follows():
    model, dead = started()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    demp.cut(model, dead, example_inputs=X, copies=[average])
    assert {name: t.shape for name, t in average.items()} == {name: p.shape for name, p in model.named_parameters()}
    assert all(torch.equal(average[name], p) for name, p in model.named_parameters())


def test_a_state_dict_follows_without_touching_the_model_twice():
    model, dead = started()
    snapshot = model.state_dict()
    demp.cut(model, dead, example_inputs=X, copies=[snapshot])
    assert all(torch.equal(snapshot[name], tensor) for name, tensor in model.state_dict().items())


def test_objects_that_are_no_copies_are_refused_before_anything_is_touched():
    model, dead = started()
    before = comparing.state(model)
    strangers = [nets.mlp(2, 3, 4), {"0.weight": torch.zeros(7, 2, 3, 3)}]
    for stranger in strangers:
        with pytest.raises(demp.CutError, match=r"the copy .* has no .*; give copies of the model"):
            demp.cut(model, dead, example_inputs=X, copies=[copy.deepcopy(model), stranger])
        assert comparing.same_state(before, model)


def test_a_copy_that_missed_a_cut_is_refused():
    model, dead = started()
    ema = copy.deepcopy(model)
    demp.cut(model, {"7": [1]}, example_inputs=X)
    with pytest.raises(demp.CutError, match="give copies of the model as it is now"):
        demp.cut(model, {"2": dead["2"], "4": dead["4"]}, example_inputs=X, copies=[ema])


def test_a_copy_that_shares_some_tensors_with_the_model():
    model, dead = started()
    teacher = copy.deepcopy(model)
    teacher[6].weight = model[6].weight
    before = comparing.outputs(teacher, X)
    demp.cut(model, dead, example_inputs=X, copies=[teacher, teacher])
    assert teacher[6].weight is model[6].weight and model[6].weight.shape == (3, 12)
    assert comparing.gap(before, comparing.outputs(teacher, X)) < 1e-10
