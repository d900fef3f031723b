"""Neurons that fade hand over: exactly where others can say all of it, and nowhere that it could do harm."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
from demp.importance import redundancy
from demp.regularization.handover import Handover, hand_over, takers

STEPS = 40


class Doubled(nn.Module):
    """Every neuron of the first layer stands twice, up to a factor."""

    def __init__(self, kind: str):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 16) if kind == "linear" else nn.Conv2d(2, 16, 3, padding=1)
        conv, inputs = kind.startswith("convolution"), 16 * 16 if kind == "flat" else 16
        self.second = nn.Conv2d(16, 12, 3, padding=1, bias=False) if conv else nn.Linear(inputs, 12)
        self.norm = nn.BatchNorm2d(12) if kind == "convolution with norm" else nn.Identity()
        self.act1, self.act2, self.flat = nn.ReLU(), nn.ReLU(), nn.Flatten() if kind == "flat" else nn.Identity()
        self.head = nn.Linear(12 * 16 if conv else 12, 3)
        with torch.no_grad():
            self.first.weight[8:], self.first.bias[8:] = 2 * self.first.weight[:8], 2 * self.first.bias[:8]

    def forward(self, x):
        return self.head(self.act2(self.norm(self.second(self.flat(self.act1(self.first(x)))))).flatten(1))


def batch(kind: str, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    shape = (64, 6) if kind == "linear" else (32, 2, 4, 4)
    return torch.randn(shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["linear", "convolution", "convolution with norm", "flat"])
@pytest.mark.parametrize("handed", [True, False])
def test_a_network_of_twins_loses_one_of_each_and_computes_what_it_did(kind, handed, monkeypatch):
    """At rate 0, so that nothing but fading and handing over changes a weight."""
    monkeypatch.setattr(redundancy, "RIDGE", 1e-10)
    model = Doubled(kind).double()
    dense, x = copy.deepcopy(model), batch(kind, 99)
    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(x,), total_steps=STEPS, budget=demp.Budget(neurons=20 / 28), copies=[copied],
        hand_over=handed, exclude=("act2",),
    )  # fmt: skip
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(kind, step)), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    assert pruner.state.neurons == 20
    said = [note for report in pruner.history for note in report.notes if "weights that take what others" in note]
    assert all(note.endswith("others can say of them: 1") for note in said) and bool(said) == handed
    for network in (model, copied):
        same = torch.allclose(network.train()(x), dense.train()(x), atol=1e-5)
        assert same == handed and network.second.weight.shape == model.second.weight.shape


@pytest.mark.parametrize("conv", [False, True])
def test_a_share_at_a_time_is_the_whole(conv):
    shape = (4, 6, 3, 3) if conv else (4, 6)
    weight, coefficients, means = torch.randn(shape, dtype=torch.float64), torch.randn(3, 2), torch.randn(2)
    bias = torch.randn(4, dtype=torch.float64)
    graph = demp.trace(nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4)), (torch.zeros(1, 2),))
    places = torch.tensor([[1, 4]]), torch.tensor([[0, 2, 5]])
    one = Handover("2.weight", 1, *places, coefficients, means, "2.bias")
    model, copied = ({"2.weight": weight.clone(), "2.bias": bias.clone()} for _ in range(2))
    for share in (0.25, 0.5, 0.25):
        hand_over(model, graph.dense, [one], share, [copied, {}])
    wanted, shifted = weight.clone(), bias.clone()
    for column, j in enumerate((1, 4)):
        for place, k in enumerate((0, 2, 5)):
            wanted[:, k] += coefficients[place, column] * weight[:, j]
        shifted += means[column] * (weight[:, j].sum((1, 2)) if conv else weight[:, j])
    for tensors in (model, copied):
        torch.testing.assert_close(tensors["2.weight"], wanted)
        torch.testing.assert_close(tensors["2.bias"], shifted)


def test_a_weight_that_was_cut_by_others_takes_from_those_that_are_left():
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4))
    graph = demp.trace(model, (torch.zeros(1, 2),))
    one = Handover("2.weight", 1, torch.tensor([[1, 4]]), torch.tensor([[0, 2, 5]]), torch.ones(3, 2), torch.ones(2))
    removed = graph.none_removed()
    removed[graph.reads[0].classes[[2, 4]]] = True
    weight = torch.arange(16.0).view(4, 4)  # columns 0, 1, 3, 5
    before = weight.clone()
    hand_over({"2.weight": weight}, graph.at(removed), [one], 1.0)
    assert torch.equal(weight[:, [0, 3]], before[:, [0, 3]] + before[:, [1]])
    assert torch.equal(weight[:, [1, 2]], before[:, [1, 2]])
    other = torch.ones(4, 5)  # of a width that the graph does not know
    hand_over({"2.weight": other}, graph.at(removed), [one], 1.0)
    assert bool((other == 1).all())


class Chain(nn.Module):
    """One weight that reads twice, one frozen, a grouped convolution, two in a chain, a residual block."""

    def __init__(self):
        super().__init__()
        self.inner, self.twice, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.grouped, self.chained, self.bare = (
            nn.Conv1d(8, 8, 1, groups=2),
            nn.Linear(8, 8),
            nn.Linear(8, 8, bias=False),
        )
        self.to_stream, self.into, self.out, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = torch.relu(self.inner(x))
        x = torch.relu(self.twice(x))
        x = torch.relu(self.twice(x))
        x = torch.relu(self.frozen(x))
        x = torch.relu(self.grouped(x.unsqueeze(2))).squeeze(2)
        x = torch.relu(self.bare(torch.relu(self.chained(x))))
        x = torch.relu(self.to_stream(x))
        x = torch.relu(x + self.out(torch.relu(self.into(x))))
        return self.last(x)


def test_only_weights_in_a_chain_that_nothing_else_uses_take_it():
    model = Chain()
    graph = demp.trace(model, (torch.zeros(2, 8),))
    found = {taker.read.weight: taker for taker in takers(model, graph.dense)}
    assert set(found) == {"chained.weight", "bare.weight"}
    assert (found["chained.weight"].bias, found["chained.weight"].centred) == ("chained.bias", True)
    assert (found["bare.weight"].bias, found["bare.weight"].centred) == ("", False)
    assert {read.weight for read in graph.reads} > {"twice.weight", "to_stream.weight", "into.weight", "last.weight"}


class Standardised(nn.Linear):
    """Computes with another weight than the parameter."""

    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


@pytest.mark.parametrize("kind", ["plain", "standardised", "compiled"])
def test_nothing_is_watched_where_a_weight_is_computed_or_code_is_compiled(kind):
    reader = Standardised(12, 12) if kind == "standardised" else nn.Linear(12, 12)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), reader, nn.ReLU(), nn.Linear(12, 3).requires_grad_(False))
    if kind == "compiled":
        model.compile(backend="eager")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    x = torch.randn(8, 6)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=STEPS, budget=demp.Budget(neurons=0.6))
    for _ in range(STEPS):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not pruner.method._course._handovers or kind == "plain"
    assert (pruner._run.covariances is not None) == (kind == "plain")
    assert pruner.state.neurons <= 0.6 * 24


def test_the_training_of_a_model_in_evaluation_mode_hands_nothing_over_and_lands():
    model = Doubled("linear").double().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = batch("linear", 0)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=STEPS, budget=demp.Budget(flops=0.5))
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(batch("linear", step)), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    assert pruner.flops <= 0.5 * pruner.graph.dense.flops()
