"""Methods of a pruned module that are called by themselves: refused where they hold what a cut has planned."""

import copy
import functools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from demp.graph.alone import helpers
from demp.graph.calls import model_calls
from demp.graph.joins import model_joins
from residuals import Block, cut_apart

ROWS = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Squared(nn.Module):
    """Takes a mean like the one of its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x - x.mean(1, keepdim=True)).square()


class Net(nn.Module):
    """A forward in steps, one of which depends on the number of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.extra = nn.Linear(6, 8), nn.Linear(8, 2), Squared()

    def features(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return h * (1 + h.mean(1, keepdim=True))

    def steps(self, x: Tensor) -> Tensor:
        return self.finished(self.features(x))

    def finished(self, h: Tensor) -> Tensor:
        return self.head(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)

    def penalty(self, h: Tensor) -> Tensor:
        return h.mean(1, keepdim=True)

    def with_extra(self, h: Tensor) -> Tensor:
        return self.finished(self.extra(h))


def pruned() -> nn.Module:
    model = nets.settle(Net())
    graph = demp.trace(model, (ROWS,))
    killing.kill(model, graph, {"relu": [0, 3]})
    wanted = comparing.outputs(model, (ROWS,))
    assert demp.cut(model, {"relu": [0, 3]}, example_inputs=(ROWS,), graph=graph).removed == 2
    assert model_calls(model) and comparing.gap(wanted, comparing.outputs(model, (ROWS,))) < 1e-12
    return model


def test_a_step_that_holds_a_planned_call_is_refused_by_itself():
    model = pruned()
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = twin(ROWS)
        for method in (twin.features, twin.steps):
            with pytest.raises(demp.UsageError, match=r"features of Net was called by itself.* call the module"):
                method(ROWS)
        assert torch.equal(before, twin(ROWS))


def test_other_methods_and_other_modules_run():
    model = pruned()
    h = torch.rand(4, 6, dtype=torch.float64)
    assert torch.equal(model.finished(h), model.head(h))
    assert model.penalty(h).shape == (4, 1) and model.with_extra(h).shape == (4, 2)


def test_after_an_error_the_forward_is_over():
    model = pruned()
    with pytest.raises(RuntimeError):
        model(ROWS[:, :3])
    with pytest.raises(demp.UsageError):
        model.features(ROWS)


class Stepped(Block):
    """A residual block with its sum in a method."""

    def added(self, x: Tensor) -> Tensor:
        return self.branch(x) + x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.added(x))


def test_a_step_that_holds_a_planned_sum_is_refused_by_itself():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Stepped(8, 5), nn.Flatten(), nn.Linear(8 * 36, 4))
    model, inputs = nets.settle(model), (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    cut_apart(model, inputs)
    assert model_joins(model)
    x = model[:2](inputs[0])
    wanted = model[2](x)
    with pytest.raises(demp.UsageError, match="added of Stepped was called by itself"):
        model[2].added(x)
    assert torch.equal(wanted, model[2](x)) and model[2].branch(x).shape == wanted.shape


def test_helpers_are_what_a_forward_speaks_of():
    assert set(helpers(Net)) == {"steps", "features", "finished"}
    assert set(helpers(Stepped)) == {"added", "branch"}
    assert helpers(nn.ReLU) == {}


def test_a_forward_that_is_no_function_speaks_of_nothing():
    class Called(nn.Module):
        forward = functools.partial(F.relu)

    assert helpers(Called) == {}
