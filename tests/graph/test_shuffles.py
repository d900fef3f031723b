"""Channel shuffles written as views: every channel goes on its own; what is no shuffle is followed as before."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import exactly
import killing
from demp.graph.calls import model_calls
from nets import Forward

IMAGE = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


def network(shuffle) -> nn.Module:
    """A shuffle of eight channels between two convolutions."""
    torch.manual_seed(0)
    parts = {"conv": conv(3, 8), "next": conv(8, 5), "head": nn.Linear(5, 2)}
    return Forward(lambda s, x: s.head(F.relu(s.next(shuffle(F.relu(s.conv(x))))).mean((2, 3))), **parts).double()


def by_numbers(x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


SHUFFLES = {
    "torchvision": lambda x: (
        torch.transpose(x.view(len(x), 4, x.shape[1] // 4, 5, 5), 1, 2).contiguous().view(len(x), x.shape[1], 5, 5)
    ),
    "numbers": by_numbers,
    "flatten": lambda x: x.reshape(len(x), 2, -1, 5, 5).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 4)).transpose(2, 1).reshape(-1, 8, 5, 5),
    "three axes": lambda x: x.view(-1, 2, 2, 2, 5, 5).permute(0, 3, 1, 2, 4, 5).reshape(-1, 8, 5, 5),
    "two shuffles": lambda x: by_numbers(by_numbers(x).view(-1, 4, 2, 5, 5).transpose(1, 2).flatten(1, 2)),
    "there and back": lambda x: x.view(-1, 2, 4, 5, 5).flatten(1, 2),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_every_channel_goes_on_its_own(name):
    model = network(SHUFFLES[name])
    assert exactly.offered(demp.trace(model, (IMAGE,))) == {"relu": 8, "relu#2": 5}
    assert all(exactly.cut_twice(model, (IMAGE,)))
    left = model.next.in_channels
    assert model.conv.out_channels == left < 8 and model_calls(model)
    assert exactly.offered(demp.trace(model, (IMAGE,)))["relu"] == left


def test_which_channel_goes_where():
    """The literal permutation, channel by channel."""
    for dead in range(8):
        model = network(by_numbers)
        graph = demp.trace(model, (IMAGE,))
        killing.kill(model, graph, {"relu": [dead]})
        columns = model.next.weight.detach().clone()
        demp.cut(model, {"relu": [dead]}, example_inputs=(IMAGE,), graph=graph)
        reader = [0, 4, 1, 5, 2, 6, 3, 7].index(dead)
        assert torch.equal(model.next.weight, torch.cat([columns[:, :reader], columns[:, reader + 1 :]], 1))


OTHERS = {
    "something else on the grid": lambda x: F.relu(x.view(-1, 2, 4, 5, 5)).transpose(1, 2).reshape(-1, 8, 5, 5),
    "a sum over the grid": lambda x: x.view(-1, 2, 4, 5, 5).transpose(1, 2).sum(1).repeat(1, 4, 1, 1),
    "more than the grid": lambda x: x.view(-1, 2, 4, 5, 5).transpose(1, 2).reshape(-1, 8 * 25).view(-1, 8, 5, 5),
    "half of the grid": lambda x: x.view(-1, 2, 2, 2, 5, 5).transpose(1, 2).reshape(-1, 2, 4, 5, 5).flatten(1, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_shuffle_is_not_taken_for_one(name):
    """Offered or not, what goes leaves the outputs as they are."""
    model = network(OTHERS[name])
    exactly.cut_twice(model, (IMAGE,))
    assert all(not plan.grid for plans in model_calls(model).values() for plan in plans.values())


def test_without_plans_channels_stay():
    graph = demp.trace(network(by_numbers), (IMAGE,), joins=False)
    assert "relu" not in exactly.offered(graph) and "a channel shuffle made of views" in exactly.reasons(graph)


def test_a_module_that_runs_twice_shuffles_alike():
    unit = Forward(lambda s, x: by_numbers(F.relu(s.conv(x))), conv=conv(8, 8)).double()
    twice = Forward(
        lambda s, x: s.head(s.unit(s.unit(F.relu(s.stem(x)))).mean((2, 3))),
        stem=conv(3, 8), unit=unit, head=nn.Linear(8, 2),
    ).double()  # fmt: skip
    assert exactly.offered(demp.trace(twice, (IMAGE,))) == {"relu": 8, "unit.relu": 8, "unit.relu#2": 8}
    assert all(exactly.cut_twice(twice, (IMAGE,)))


def test_copied_saved_and_loaded(tmp_path):
    model = network(by_numbers)
    dead = killing.killed(model, demp.trace(model, (IMAGE,)), 0.4)
    demp.cut(model, dead, example_inputs=(IMAGE,))
    demp.save(model, tmp_path / "model")
    loaded = demp.load(lambda: network(by_numbers), tmp_path / "model")
    for other in (loaded, copy.deepcopy(model)):
        assert comparing.gap(comparing.outputs(model, (IMAGE,)), comparing.outputs(other, (IMAGE,))) == 0.0
    exported = torch.export.export(model.eval(), (IMAGE,)).module()
    assert float((exported(IMAGE) - model(IMAGE)).detach().abs().max()) < 1e-10
