"""A budget of latency: measured in turns with the dense network, measured again before it counts as met."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
from demp.budgets import Budget, Meter, Question, choose, sizes_of
from demp.errors import UsageError
from demp.pruner.latency import in_turns
from demp.surgery import Limits


def mlp(width: int = 512) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def test_a_run_lands_on_a_latency_by_the_real_clock(caplog):
    model, x = mlp(), torch.randn(64, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=40, budget=Budget(latency=0.6))
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(64) % 4).backward()
        optimizer.step()
    pruner.finish()
    assert pruner.state.flops() < pruner.graph.dense.flops()
    noted = [note for report in pruner.history for note in report.notes if note.startswith("budget: ")]
    assert float(re.search(r"([\d.]+) of latency", noted[-1])[1]) <= 0.6
    assert not caplog.records  # the dense network that is timed is no copy that somebody forgot


def test_a_busy_machine_slows_both_networks():
    """All forwards of the second half take ten times as long: the ratio is what it was."""
    now, forwards = [0.0], [0]

    class Timed(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.own, self.weight = seconds, nn.Parameter(torch.zeros(1))

        def forward(self, x):
            forwards[0] += 1
            now[0] += self.own * (10 if forwards[0] > 12 else 1)
            return x

    mine, dense = in_turns((Timed(0.2), Timed(0.4)), (torch.zeros(1),), lambda: now[0])
    assert mine / dense == pytest.approx(0.5)


def test_a_network_that_was_fast_by_chance_is_found_out():
    """The first measurement of every network but the dense one says half of the truth, the next the truth."""
    model, x = mlp(16), torch.randn(4, 32)
    graph = demp.trace(model, (x,))
    plain, seen = Meter(graph, sizes_of(model)), set()
    dense = plain.spent("flops", graph.none_removed())

    def clock(removed):
        truth = plain.spent("flops", removed) / dense
        first = tuple(removed.tolist()) not in seen
        seen.add(tuple(removed.tolist()))
        return (truth / 2 if first and removed.any() else truth), 1.0

    meter = Meter(graph, sizes_of(model), clock)
    question = Question(importance=torch.arange(graph.classes).double(), limits=Limits())
    found = choose(meter, graph.none_removed(), meter.goals(Budget(latency=0.7)), question)
    assert not found.lack
    assert 0.5 < plain.spent("flops", found.chosen) / dense <= 0.7


def test_a_latency_is_on_the_scale_of_the_first_dense_measurement():
    model, x = mlp(16), torch.randn(4, 32)
    graph = demp.trace(model, (x,))
    busy = [1.0]
    meter = Meter(graph, sizes_of(model), lambda removed: (busy[0] * (0.5 if removed.any() else 1.0), busy[0]))
    some = graph.none_removed()
    some[graph.layers[0].classes[:4]] = True
    assert meter.spent("latency", graph.none_removed()) == 1e6
    busy[0] = 7.0
    assert meter.spent("latency", some) == pytest.approx(0.5e6)


def test_what_cannot_be_timed_is_refused_when_the_pruner_is_built():
    model, x = mlp(16).to("meta"), torch.randn(4, 32, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"nothing runs on the meta device; use flops="):
        demp.DemP(model, optimizer, example_inputs=(x,), total_steps=40, budget=Budget(latency=0.6))
    model = mlp(16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"nothing runs on the meta device"):
        demp.DemP(model, optimizer, example_inputs=(x,), total_steps=40, budget=Budget(latency=0.6))
