"""A model that was changed behind the pruner's back is noticed before anything is touched; harmless changes are not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import comparing
import demp
from runs import IMAGE, PlainNet, hooks_on, loss_of, quiet_demp, sgd, widths, with_dead


class Louder(nn.Linear):
    """A linear layer of another class."""


def replace_module(model: PlainNet) -> None:
    model.head = copy.deepcopy(model.head)


def replace_container(model: PlainNet) -> None:
    model.act1 = nn.ReLU()


def replace_parameter(model: PlainNet) -> None:
    model.fc.weight = nn.Parameter(model.fc.weight.detach().clone())


def tie(model: PlainNet) -> None:
    model.norm2.bias = model.conv2.bias


def add_module(model: PlainNet) -> None:
    model.extra = nn.Linear(2, 2)


def add_parameter(model: PlainNet) -> None:
    model.head.scale = nn.Parameter(torch.ones(3))


def take_away(model: PlainNet) -> None:
    model.conv2.bias = None


def change_class(model: PlainNet) -> None:
    model.fc.__class__ = Louder


def parametrized(model: PlainNet) -> None:
    parametrize.register_parametrization(model.head, "weight", nn.Identity())


def assigned(model: PlainNet) -> None:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


CHANGES = {
    replace_module: "head is another object since the model was traced",
    replace_container: "act1 is another object",
    replace_parameter: r"fc\.weight is another object",
    tie: r"norm2\.bias is another object",
    add_module: "extra was added",
    add_parameter: r"head\.scale was added",
    take_away: r"conv2\.bias was taken away",
    change_class: "fc became a Louder",
    parametrized: "head became a ParametrizedLinear",
    assigned: r"conv1\.weight is another object",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed_before_anything_is_touched(change):
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, on_error="raise")
    loss_of(model, 0, IMAGE).backward()
    optimizer.step()
    change(model)
    before, state, tensors = comparing.state(model), copy.deepcopy(optimizer.state_dict()), comparing.tensors_of(model)
    with pytest.raises(demp.CutError, match=CHANGES[change] + ".*build a new one. Nothing was cut"):
        pruner.finish()
    assert comparing.same_state(before, model) and comparing.same_tree(state, optimizer.state_dict())
    assert all(tensor is tensors[name] for name, tensor in comparing.tensors_of(model).items())
    assert widths(model)[0] == 6 and pruner.history == [] and pruner.step == 1


def test_changes_are_noticed_in_the_middle_of_a_run():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, period=2, on_error="raise")
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step, IMAGE).backward()
        optimizer.step()
    assert [r.removed for r in pruner.history] == [1]
    replace_module(model)
    loss_of(model, 3, IMAGE).backward()
    with pytest.raises(demp.CutError, match="head is another object"):
        optimizer.step()
    assert widths(model)[0] == 5


def test_a_saved_run_is_not_replayed_on_a_changed_model():
    model = with_dead(act1=[0])
    pruner = quiet_demp(model, sgd(model))
    pruner.finish()
    other = with_dead(act1=[0])
    resumed = quiet_demp(other, sgd(other))
    replace_module(other)
    with pytest.raises(demp.CutError, match="head is another object"):
        resumed.load_state_dict(pruner.state_dict())
    assert widths(other)[0] == 6


def test_harmless_changes_pass():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    model.float().double().to(memory_format=torch.channels_last).eval().train()
    model.norm1.running_mean = model.norm1.running_mean.clone()
    model.act2.register_forward_hook(lambda module, args, out: None)
    model.conv2.bias.requires_grad_(False)
    model.note = "a plain attribute"
    hooks = hooks_on(model)
    assert pruner.finish().removed == 1 and hooks_on(model) == hooks
