"""Handing over in networks of many forms: a layer whose one half says the other loses nothing by its cuts."""

import copy

import pytest
import torch
from torch import nn

import demp
from demp.importance import redundancy
from nets import Forward

STEPS = 40


def affine(layer: nn.Module) -> nn.Module:
    """Outputs are positive, and those of the second half are ``2 a + 5`` of those of the first."""
    half = len(layer.bias) // 2
    with torch.no_grad():
        layer.weight *= 0.3
        layer.weight[half:] = 2 * layer.weight[:half]
        layer.bias[:half], layer.bias[half:] = 10, 25
    return layer


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut(model: nn.Module, shape: tuple[int, ...], neurons: float, monkeypatch, **options) -> tuple[nn.Module, object]:
    """The dense model and the pruner of one that was trained at rate 0, so that only cuts and handovers change it."""
    monkeypatch.setattr(redundancy, "RIDGE", 1e-10)
    optimizer = torch.optim.SGD([p for p in model.double().parameters() if p.requires_grad], lr=0.0)
    dense = copy.deepcopy(model)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(drawn(shape, 99),), total_steps=STEPS, budget=demp.Budget(neurons=neurons),
        exclude=("kept",), **options,
    )  # fmt: skip
    for step in range(STEPS):
        optimizer.zero_grad()
        sum(out.square().mean() for out in as_tuple(model(drawn(shape, step)))).backward()
        optimizer.step()
    return dense, pruner


def as_tuple(out) -> tuple[torch.Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def beside(reverse: bool):
    """Two layers side by side, read together."""

    def forward(self, x):
        sides = [self.act1(self.one(x)), self.act2(self.two(x))]
        return self.last(self.kept(self.second(torch.cat(sides[::-1] if reverse else sides, 1))))

    return Forward(
        forward, one=affine(nn.Linear(6, 8)), two=affine(nn.Linear(6, 8)), second=nn.Linear(16, 12),
        act1=nn.ReLU(), act2=nn.ReLU(), kept=nn.ReLU(), last=nn.Linear(12, 3),
    )  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_may_be_read_together_in_any_order(reverse, monkeypatch):
    model = beside(reverse)
    dense, pruner = cut(model, (64, 6), 20, monkeypatch)
    assert pruner.state.neurons == 20
    torch.testing.assert_close(model(drawn((64, 6), 99)), dense(drawn((64, 6), 99)), atol=1e-5, rtol=0)
