"""A model that has diverged is named at the next check and not cut; the search for held graphs waits for a cut."""

import pytest
import torch

import demp
from demp.pruner import model as shrinking
from demp.surgery.finite import raise_if_not_finite
from runs import IMAGE, examples, quiet_demp, sgd, train, with_dead

BROKEN = {
    "a weight": ("conv2.weight", torch.nan, "conv2.weight and 2 more tensors of 15 hold"),
    "a statistic": ("norm1.running_var", torch.inf, "norm1.running_var of 15 hold"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_first_tensor_is_named_once_and_nothing_is_cut(case, caplog):
    name, value, text = BROKEN[case]
    model = with_dead(act1=[0, 1, 2])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=8, period=2)
    train(model, optimizer, IMAGE, range(1))
    with torch.no_grad():
        (model.get_parameter(name) if "weight" in name else model.get_buffer(name)).flatten()[0] = value
    for _ in range(1, 5):
        optimizer.zero_grad()
        model(examples(IMAGE)).sum().backward()
        for parameter in model.parameters():
            parameter.grad.zero_()
        optimizer.step()
    said = [r for r in caplog.records if "not finite" in r.message]
    assert [r.levelname for r in said].count("WARNING") == 1 and text in said[0].message
    assert all(not report.happened for report in pruner.history) and "skipped" in pruner.history[0].notes[0]


def test_of_many_the_first_module_is_named_and_an_error_raises_where_it_is_to():
    model = with_dead(act1=[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(demp.CutError, match=r"conv1.weight and \d+ more tensors of \d+ hold values .*nothing was cut"):
        raise_if_not_finite(model)
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    quiet_demp(model, optimizer, total_steps=4, period=1, on_error="raise")
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(demp.CutError, match="not finite"):
        train(model, optimizer, IMAGE, range(1))


def test_frozen_tensors_and_other_buffers_may_hold_anything():
    model = with_dead(act1=[0])
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    model.head.bias.requires_grad_(False).fill_(torch.nan)
    raise_if_not_finite(model)


@pytest.mark.parametrize("dead", [[], [0, 1]])
def test_python_objects_are_searched_only_where_something_would_go(dead, monkeypatch):
    searches = []
    monkeypatch.setattr(shrinking, "held_forward", lambda named: searches.append(1) or "")
    model = with_dead(act1=dead)
    with torch.no_grad():
        for number in (1, 2):
            model.get_submodule(f"norm{number}").bias.add_(3.0)  # the others all live
        model.fc.bias.add_(20.0)
        model.norm1.bias[dead] = -100.0
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=4, period=2)
    train(model, optimizer, IMAGE, range(3))
    assert len(pruner.history) == 1 and pruner.history[0].removed == len(dead)
    assert len(searches) == (1 if dead else 0)
