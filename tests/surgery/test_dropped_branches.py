"""A constant of a residual stream goes into the branch only if the branch runs in every training forward, undropped."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp


class Block(nn.Module):
    """A residual block whose branch is left alone, dropped by stochastic depth, or goes through dropout."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how, self.drop = nn.Linear(12, 16), nn.Linear(16, 12), how, nn.Dropout(0.3)

    def forward(self, x):
        y = self.b(F.gelu(self.a(x)))
        if self.how == "stochastic depth" and self.training:
            y = y * (torch.rand(len(y), 1, dtype=y.dtype) < 0.5) * 2
        return F.gelu(x + (self.drop(y) if self.how == "dropout" else y))


def network(how: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), Block(how), nn.Linear(12, 3)).double()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = torch.tensor([1.0, 2.0, 1.5, 0.7])
    return model


@pytest.mark.parametrize("how", ["plain", "stochastic depth", "dropout"])
def test_training_is_the_same_with_the_same_draws(how: str):
    model, x = network(how), torch.randn(64, 6).double()
    dense = copy.deepcopy(model)
    report = demp.cut(model, {"1": [0, 1, 2, 3]}, example_inputs=(x,), constants=True)
    assert report.removed == (4 if how == "plain" else 0) and bool(report.held) == (how != "plain")
    for training in (False, True):
        outputs = []
        for one in (dense.train(training), model.train(training)):
            torch.manual_seed(1)
            outputs.append(one(x).detach())
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
