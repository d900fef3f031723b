"""Removal that begins once the dead of the last layer stay dead: by hand, in a run, and over a restart."""

from typing import Any

import pytest
import torch
from torch import nn

import demp
from demp.methods.revival import Revival

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def waits(seen: list[list[int]], progress: float = 0.1) -> list[bool]:
    """Does removal wait, check after check, if these neurons of the last layer are dead?"""
    graph, revival = demp.trace(network(), (X,)), Revival()
    found = []
    for dead in seen:
        flags = torch.tensor([neuron in dead for neuron in range(5)])
        found.append(bool(revival.wait(graph, {"1": torch.ones(6).bool(), "3": flags}, progress)))
    return found


def test_it_begins_after_three_checks_without_a_revival():
    assert waits([[0], [0], [0, 1], [0, 1]]) == [True, True, True, False]
    assert waits([[0, 1], [0], [0], [0], [0], [0, 1]]) == [True, True, True, True, False, False]
    assert waits([[0], [0], [1], [1], [1], [1]]) == [True, True, True, True, True, False]
    assert waits([[0], [0]], progress=0.6) == [False, False]
    assert waits([[], [], [], [], [0], [0], [0], [0]]) == [True, True, True, True, True, True, True, False]


def test_it_does_not_wait_again():
    assert waits([[0], [0], [0], [0], [], [0], []]) == [True, True, True, False, False, False, False]


def bias(model: Any, layer: int, neuron: int, dead: bool) -> None:
    with torch.no_grad():
        model[layer].bias[neuron] = -100.0 if dead else 1.0


def removed_at(stop: int | None = None) -> list[int]:
    """Checks at which a run of 20 steps removes something, whose last layer has a revival at the fourth.

    With ``stop`` it is interrupted there, and goes on in another process's stead.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options: Any = {
        "example_inputs": (X,), "total_steps": 20, "period": 1, "batches": [X], "noise_on": "off", "prune_after": None,
        "peak_strength": 0.0,
    }  # fmt: skip
    pruner = demp.DemP(model, optimizer, **options)
    bias(model, 0, 2, dead=True)
    for step in range(1, 21):
        bias(model, 2, 1, dead=step != 4)
        model(X).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == stop:
            state, weights, history = pruner.state_dict(), model.state_dict(), list(pruner.history)
            model = network()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            pruner = demp.DemP(model, optimizer, **options)
            pruner.load_state_dict(state)
            model.load_state_dict(weights)
            assert not any(report.removed for report in history)
        if model[0].out_features < 6:
            return [report.step for report in pruner.history if report.removed]
    return []


@pytest.mark.parametrize("stop", [None, 6])
def test_a_run_waits_for_the_last_layer_and_removes_from_all(stop: int | None):
    assert removed_at(stop) == [7]


def test_the_report_says_what_it_waits_for():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = demp.DemP(model, optimizer, example_inputs=(X,), total_steps=20, batches=[X], prune_after=None, period=1)
    model(X).sum().backward()
    optimizer.step()
    assert "nothing is removed before the dead of 3 stay dead: 0 checks of 3 so far" in str(pruner.history[-1])
