"""Weights that are standardised by hand in the forward: outputs may go, inputs may not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
import exactly
import nets

INNER = (1, 2, 3)


def centred(w: Tensor) -> Tensor:
    return w - w.mean(INNER, keepdim=True)


def by_var_mean(w: Tensor) -> Tensor:
    var, mean = torch.var_mean(w, dim=INNER, keepdim=True, correction=0)
    return (w - mean) / torch.sqrt(var + 1e-10)


def by_rows(w: Tensor) -> Tensor:
    """As the paper's own code has it: means axis by axis, deviations of rows."""
    w = w - w.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    return w / (w.view(w.size(0), -1).std(1).view(-1, 1, 1, 1) + 1e-5).expand_as(w)


def flat(w: Tensor) -> Tensor:
    rows = w.flatten(1)
    return ((rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)).view_as(w)


FORMS = {
    "mean and std": lambda w, gain: centred(w) / (w.std(INNER, keepdim=True) + 1e-5),
    "variance": lambda w, gain: centred(w) * torch.rsqrt(w.var(INNER, keepdim=True) + 1e-5),
    "var_mean": lambda w, gain: by_var_mean(w),
    "axis by axis": lambda w, gain: by_rows(w),
    "flat": lambda w, gain: flat(w),
    "with a gain": lambda w, gain: gain * centred(w) / (w.std(INNER, keepdim=True) + 1e-5),
    "a gain at the end": lambda w, gain: by_var_mean(w) * gain * 0.5,
    "layer norm": lambda w, gain: F.layer_norm(w, w.shape[1:]),
    "L2 norm": lambda w, gain: F.normalize(w.flatten(1)).view_as(w),
    "mean alone": lambda w, gain: centred(w),
}


class Standardised(nn.Conv2d):
    def __init__(self, form, *sizes, **options) -> None:
        super().__init__(*sizes, **options)
        self.form, self.gain = form, nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.form(self.weight, self.gain), self.bias, self.stride, self.padding)


def network(form) -> nn.Sequential:
    """Standardised with a norm behind it, plain, standardised with a bias, plain."""
    torch.manual_seed(0)
    return nn.Sequential(
        Standardised(form, 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 7, 3), nn.ReLU(),
        Standardised(form, 7, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten(2),
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_outputs_go_and_inputs_stay(form):
    model, inputs = nets.settle(network(FORMS[form])), (torch.randn(2, 3, 7, 7).double(),)
    graph = demp.trace(model, inputs)
    assert exactly.offered(graph) == {"2": 8, "6": 6}
    (refusal,) = graph.refused
    assert refusal.name == "4" and refusal.neurons == 7 and "weight" in refusal.reason
    assert all(exactly.cut_twice(model, inputs))
    assert len(model[0].weight) < 8 and model[5].weight.shape[1] == 7
    assert len(model[0].gain) == (len(model[0].weight) if "gain" in form else 8)


OTHERS = {
    "over outputs": lambda w, gain: w - w.mean(0, keepdim=True),
    "over all": lambda w, gain: (w - w.mean()) / w.std(),
    "no zeros of zeros": lambda w, gain: torch.exp(w),
    "two weights": lambda w, gain: w + w.detach().clone().flip(0),
}


@pytest.mark.parametrize("form", OTHERS)
def test_other_computed_weights_keep_their_outputs(form):
    graph = demp.trace(network(OTHERS[form]), (torch.randn(2, 3, 7, 7),))
    assert not exactly.offered(graph)


def test_a_weight_times_a_learned_number():
    model = nets.Forward(
        lambda s, x: s.head(F.relu(F.linear(x, s.fc.weight * s.scale))),
        fc=nn.Linear(6, 8), scale=nn.Parameter(torch.ones(1)), head=nn.Linear(8, 2),
    ).double()  # fmt: skip
    assert exactly.offered(demp.trace(model, (torch.randn(4, 6).double(),))) == {"relu": 8}
    assert all(exactly.cut_twice(model, (torch.randn(4, 6).double(),)))


def test_the_gain_scales_a_neuron():
    graph = demp.trace(network(FORMS["with a gain"]), (torch.randn(2, 3, 7, 7),))
    assert {(n.scale, n.shift) for n in graph.norms if n.producer == "5.weight"} == {
        ("5.gain", "5.bias"),
        (None, "5.bias"),
    }


@pytest.mark.parametrize("form", ["mean and std", "with a gain"])
def test_a_budget_lands_exactly(form):
    model, x = nets.settle(network(FORMS[form])).float(), torch.randn(8, 3, 7, 7)
    exactly.lands_exactly(model, x, "neurons=0.7", 5)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
