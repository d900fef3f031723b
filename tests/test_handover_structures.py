"""Handing over in networks of many forms: a layer whose one half says the other loses nothing by its cuts."""

import copy

import pytest
import torch
from torch import nn

import demp
from demp.importance import redundancy
from nets import Forward

STEPS = 40


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


def chain(second: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    return Forward(
        lambda self, x: self.last(self.kept(self.norm(self.second(self.act(self.first(x)))))),
        first=affine(nn.Linear(6, 16)), act=nn.ReLU(), second=second, norm=norm or nn.Identity(), kept=nn.ReLU(),
        last=nn.Linear(12, 3),
    )  # fmt: skip


def with_frozen_bias() -> nn.Module:
    model = chain(nn.Linear(16, 12))
    model.second.bias.requires_grad_(False)
    return model


class Frozen(nn.BatchNorm1d):
    """Keeps to the statistics that it has, in training too."""

    def train(self, mode: bool = True):
        return super().train(False)


@pytest.mark.parametrize(
    "build", [with_frozen_bias, lambda: chain(nn.Linear(16, 12, bias=False), Frozen(12).eval())], ids=["bias", "norm"]
)
def test_means_that_neither_a_bias_nor_a_norm_takes_are_said_by_others(build, monkeypatch):
    model = build()
    dense, pruner = cut(model, (64, 6), 20, monkeypatch)
    assert pruner.state.neurons == 20
    torch.testing.assert_close(model(drawn((64, 6), 99)), dense(drawn((64, 6), 99)), atol=1e-3, rtol=0)


def test_a_bias_that_is_added_elsewhere_too_stays_as_it_is(monkeypatch):
    model = Forward(
        lambda self, x: (self.last(self.kept(self.second(self.act(self.first(x))))), self.other(x)),
        first=affine(nn.Linear(6, 16)), act=nn.ReLU(), second=nn.Linear(16, 12), kept=nn.ReLU(), last=nn.Linear(12, 3),
        other=nn.Linear(6, 12),
    )  # fmt: skip
    model.other.bias = model.second.bias
    dense, _ = cut(model, (64, 6), 0.75, monkeypatch)
    for ours, theirs in zip(model(drawn((64, 6), 99)), dense(drawn((64, 6), 99)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


CONVOLUTIONS = {
    "border": (lambda: nn.Conv2d(16, 12, 3, padding=1), 2),
    "border of one position": (lambda: nn.Conv2d(16, 12, 3, padding=1), 1),
    "border in one direction": (lambda: nn.Conv2d(16, 12, (3, 1), padding=(1, 0), stride=2), 4),
    "same": (lambda: nn.Conv2d(16, 12, 4, padding="same"), 4),
    "around": (lambda: nn.Conv2d(16, 12, 3, padding=1, padding_mode="circular"), 4),
    "no border": (lambda: nn.Conv2d(16, 12, 2, dilation=2), 4),
    "transposed": (lambda: nn.ConvTranspose2d(16, 12, 2, stride=2), 4),
    "transposed with borders": (lambda: nn.ConvTranspose2d(16, 12, 4, stride=3, padding=1, output_padding=1), 4),
    "transposed in groups": (lambda: nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2), 4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_keeps_the_mean_of_each_channel(name, monkeypatch):
    """Between borders, and without them everywhere, it keeps all that it computes."""
    build, size = CONVOLUTIONS[name]
    model = Forward(
        lambda self, x: self.last(self.kept(self.second(self.act(self.first(x)))).mean((2, 3))),
        first=affine(nn.Conv2d(2, 16, 3, padding=1)), act=nn.ReLU(), second=build(), kept=nn.ReLU(),
        last=nn.Linear(12, 3),
    )  # fmt: skip
    if model.second.groups == 2:  # what the groups read goes together: neuron 4 is said by neuron 0, and 12 by 8
        with torch.no_grad():
            for ours in (model.first.weight, model.first.bias):
                ours[4:8], ours[8:12], ours[12:] = ours[8:12].clone(), ours[:4].clone(), ours[8:12].clone()
    dense, _ = cut(model, (32, 2, size, size), 20 if model.second.groups == 1 else 10, monkeypatch)
    assert len(model.first.bias) == 8
    x = drawn((32, 2, size, size), 99)
    ours, theirs = (network.second(network.act(network.first(x))) for network in (model, dense))
    exact = name in ("border of one position", "around", "no border")
    if not exact:
        ours, theirs = (out.mean((0, 2, 3)) for out in (ours, theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
