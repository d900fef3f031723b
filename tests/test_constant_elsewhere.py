"""Neurons that are constant on the batches of a check and not in training show up in the drift of the cut."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp


class Sees(nn.Module):
    """Two of its neurons follow the third input alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.a.weight[:2] = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])

    def forward(self, x):
        return self.b(F.gelu(self.a(x)))


def a_check(constant_in_training: bool, step_first: bool = True) -> demp.CutReport:
    """One check on batches whose third input is always 1."""
    model = Sees().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = torch.randn(64, 3).double()
    probe[:, 2] = 1.0
    batch = probe.clone() if constant_in_training else torch.randn(64, 3).double() * 3
    pruner = demp.DemP(
        model, optimizer, example_inputs=(probe,), batches=[(probe,)], total_steps=10, period=5, criterion="saturated"
    )
    for _ in range(5 if step_first else 0):
        F.cross_entropy(model(batch), torch.arange(64) % 2).backward()
        optimizer.step()
    return next(report for report in (pruner.history or [pruner.finish()]) if report.removed)


def test_what_varies_in_training_shows_in_the_drift():
    report = a_check(constant_in_training=False)
    assert report.saturated == 2 and report.drift is not None and report.drift > 0.1
    assert any("are not on the last training batch" in note for note in report.notes)


def test_what_is_constant_in_training_too_has_no_drift():
    report = a_check(constant_in_training=True)
    assert report.saturated == 2 and report.drift == pytest.approx(0.0, abs=1e-12)
    assert not any("last training batch" in note for note in report.notes)
