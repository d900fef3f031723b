"""The state of a run's last step, or of one past it, loads into a run that was just made, and training goes on."""

from typing import Any

import pytest
import torch

import demp
from runs import IMAGE, PlainNet, build, examples, kill, train


def made(total: int, period: int | None, **options: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer, demp.Pruner]:
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    kill(model.norm1, [0, 2])
    pruner = demp.DemP(model, optimizer, example_inputs=(examples(IMAGE),), total_steps=total, period=period, **options)
    return model, optimizer, pruner


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize(("total", "past", "then", "period"), [
    (20, 0, 20, 5), (20, 0, 21, 5), (20, 0, 40, 5), (20, 0, 40, None), (20, 3, 20, 5), (20, 5, 40, 5),
])  # fmt: skip
def test_it_loads_and_goes_on(total: int, past: int, then: int, period: int | None, probe: bool):
    options = {"batches": [examples(IMAGE)]} if probe else {}
    model, optimizer, pruner = made(total, period, **options)
    train(model, optimizer, IMAGE, range(total + past))
    assert sum(report.removed for report in pruner.history) >= 2
    other, its_optimizer, its_pruner = made(then, period, **options)
    its_pruner.load_state_dict(pruner.state_dict())
    other.load_state_dict(model.state_dict())
    its_optimizer.load_state_dict(optimizer.state_dict())
    assert train(other, its_optimizer, IMAGE, range(50, 51)) == train(model, optimizer, IMAGE, range(50, 51))
    train(other, its_optimizer, IMAGE, range(51, 72))
    assert its_pruner.finish().neurons_after <= pruner.state.neurons
