"""Training that does not call the model: its parts, its methods, in evaluation mode; what nobody saw is named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.activity import Criterion, Window
from demp.errors import TraceError, UsageError
from runs import VECTOR, build, examples, kill_linear

DEAD = [0, 2, 5]


class Body(nn.Module):
    """Its layers lie in one part, which a method and the forward run."""

    def __init__(self, reader: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), reader(12, 3))

    def act(self, x: Tensor) -> Tensor:
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Agent(Body):
    """Has no forward, as agents that act and value."""

    forward = None


class Named(nn.Linear):
    """Nothing but another class."""


class Scaled(nn.Linear):
    """A forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias) * 0.5


def with_dead(kind: type[Body] = Body, **options: Any) -> Body:
    """Neurons of the hidden layer that are dead, all others alive on every example."""
    model = build(kind, **options)
    with torch.no_grad():
        model.net[0].weight *= 0.01
        model.net[0].bias[:] = 1.0
    kill_linear(model.net[0], DEAD)
    return model


def run(model: Body, call: Callable[[Tensor], Tensor], steps: int = 6, **options: Any) -> demp.Pruner:
    """Train by ``call``, checks every second step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(VECTOR),), total_steps=steps, period=2, peak_strength=0.0,
        peak_noise_std=0.0, penalty_on="parameters", **options,
    )  # fmt: skip
    for step in range(steps):
        call(examples(VECTOR, seed=step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return pruner


@pytest.mark.parametrize("call", ["model", "part", "method", "evaluation"])
def test_whatever_training_calls_the_dead_are_seen(call: str):
    model = with_dead()
    model.train(call != "evaluation")
    calls = {"model": model, "part": model.net, "method": model.act, "evaluation": model}
    pruner = run(model, calls[call])
    late = call == "evaluation"  # the first step shows that this model trains so
    assert [r.removed for r in pruner.history] == [3, 0, 0]
    assert [r.judged["batches"] for r in pruner.history] == [2 - late, 2, 2]
    assert [r.judged["examples"] for r in pruner.history] == [16 - 8 * late, 16, 16]
    assert model.net[0].out_features == 9
    said = "never the whole, so this check was proven on example_inputs"
    assert all((said in str(r)) == (call in ("part", "method")) for r in pruner.history)


def test_a_neuron_that_one_part_shows_alive_stays():
    model = with_dead()

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            model.net[0].bias[2] = 1.0 if step[0] == 1 else -5.0
        step[0] += 1
        return model.net(x)

    step = [0]
    assert [r.removed for r in run(model, call, steps=2).history] == [2]


@pytest.mark.parametrize("gradients", [True, False])
def test_an_evaluation_between_steps_does_not_count(gradients: bool):
    model = with_dead()

    def call(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(gradients):
            model.eval()(1e4 * x)  # everybody speaks, or nobody
        return model.train()(x)

    pruner = run(model, call)
    assert [(r.removed, r.judged["batches"]) for r in pruner.history] == [(3, 2), (0, 2), (0, 2)]


@pytest.mark.parametrize("forward", ["act", lambda agent, x: agent.act(x)], ids=["name", "function"])
def test_an_agent_without_forward(forward: Any):
    model = with_dead(Agent)
    pruner = run(model, model.act, forward=forward)
    assert [r.removed for r in pruner.history] == [3, 0, 0]
    assert pruner.history[0].difference == pytest.approx(0, abs=1e-12)
    assert model.act(examples(VECTOR)).shape == (8, 3) and model.forward is None


def test_what_cannot_run_the_model_is_refused():
    model = with_dead(Agent)
    with pytest.raises(TraceError, match=r"Agent has no forward.*give the pruner forward="):
        run(model, model.act)
    with pytest.raises(UsageError, match=r"forward='akt': Agent has no such method"):
        run(model, model.act, forward="akt")
    with pytest.raises(UsageError, match=r"forward is a int; give the name of a method or a function"):
        run(model, model.act, forward=3)


@pytest.mark.parametrize("reader", [Named, Scaled])
@pytest.mark.parametrize("call", ["model", "part"])
def test_readers_of_other_classes_are_watched(reader: type[nn.Linear], call: str):
    model = with_dead(reader=reader)
    pruner = run(model, model if call == "model" else model.net)
    assert [r.removed for r in pruner.history] == [3, 0, 0]


class TwoHeads(nn.Module):
    """Reads its neurons twice; training may leave one reader out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(6, 12), nn.ReLU()
        self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc(x))
        return self.one(h) + self.two(h)


def test_a_layer_that_no_forward_reached_is_named():
    model = build(TwoHeads)
    kill_linear(model.fc, DEAD)
    pruner = run(model, lambda x: model.one(model.act(model.fc(x))), steps=2)
    assert [r.removed for r in pruner.history] == [0]
    assert (
        "no forward before this check reached all that reads act: none there counts as dead" in pruner.history[0].notes
    )


class Bare(nn.Module):
    """Its second layer is read by a parameter of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act1, self.fc2, self.act2 = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU()
        self.out = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.act2(self.fc2(self.act1(self.fc1(x)))), self.out)


def test_a_layer_that_cannot_be_watched_is_named():
    model = build(Bare)
    pruner = run(model, model, steps=2)
    assert any(note.startswith("act2 cannot be watched while training") for note in pruner.history[0].notes)
    batches = [examples(VECTOR)]
    assert run(build(Bare), model, steps=2, batches=batches).history[0].notes == ()


class Shared(nn.Module):
    """One head reads two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def one(self, x: Tensor) -> Tensor:
        return self.head(self.act1(self.fc1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.head(self.act2(self.fc2(x)))


def test_of_a_reader_with_several_uses_nobody_can_tell_which_one_a_part_runs():
    model = build(Shared)
    kill_linear(model.fc1, [0])
    graph = demp.trace(model, (examples(VECTOR),))
    window = Window(model, graph, Criterion())
    window.open(graph.dense)
    model.one(examples(VECTOR))
    assert not any(bool(flags.any()) for flags in window.detect().dead.values())
    model(examples(VECTOR))
    assert window.detect().dead["act1"].tolist() == [True, False, False, False]


def test_a_saved_window_goes_on_with_parts_and_in_evaluation():
    model = with_dead().eval()
    graph = demp.trace(model, (examples(VECTOR),))
    windows = [Window(net, graph, Criterion()) for net in (model, copy.deepcopy(model))]
    windows[0].open(graph.dense)
    for step in range(3):
        model.net(examples(VECTOR, seed=step))
        windows[0].step()
    windows[1].open(graph.dense)
    windows[1].load_state_dict(copy.deepcopy(windows[0].state_dict()))
    for window in windows:
        window._model.net(examples(VECTOR, seed=9))
        assert (window.batches, window.examples) == (3, 24)
        assert window.detect().dead["net.1"].nonzero().flatten().tolist() == DEAD
