"""Neurons that still speak a little: what is constant about them may move into their readers."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import comparing
import demp
import killing
import nets
from demp.surgery import record_of

X = (torch.randn(8, 4),)


def constant_neuron(reader: nn.Module, *, conv: bool = False) -> tuple[nn.Sequential, tuple[torch.Tensor]]:
    """Neuron 2 of a GELU layer says the same for every example; ``reader`` reads it."""
    first = nn.Conv2d(4, 6, 1) if conv else nn.Linear(4, 6)
    model = nn.Sequential(first, nn.GELU(), reader)
    with torch.no_grad():
        first.weight[2], first.bias[2] = 0.0, 1.0
    return model, ((torch.randn(8, 4, 5, 5),) if conv else X)


def cut(model: nn.Module, inputs, **options) -> demp.CutReport:
    return demp.cut(model, {"1": [2]}, example_inputs=inputs, exact=False, **options)


READERS = {
    "linear": lambda: (nn.Linear(6, 3), False),
    "two layers": lambda: (nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), False),
    "linear and norm": lambda: (nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)), False),
    "convolution": lambda: (nn.Conv2d(6, 3, 3), True),
    "convolution and norm": lambda: (nn.Sequential(nn.Conv2d(6, 3, 3, bias=False), nn.BatchNorm2d(3)), True),
}


@pytest.mark.parametrize("name", READERS)
def test_a_constant_neuron_is_folded_away(name):
    reader, conv = READERS[name]()
    model, inputs = constant_neuron(reader, conv=conv)
    before = comparing.outputs(model, inputs)
    report = cut(model, inputs, fold=True)
    assert report.removed == 1 and report.difference < 1e-4 and report.drift < 1e-5
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-5
    assert len(report.notes) == 1 and report.notes[0].startswith("means folded into the readers: drift ")
    reader, conv = READERS[name]()
    model, inputs = constant_neuron(reader, conv=conv)
    report = cut(model, inputs)
    assert report.drift > 1e-2 and report.notes == ()


def test_borders_make_it_an_approximation():
    model, inputs = constant_neuron(nn.Conv2d(6, 3, 3, padding=1), conv=True)
    report = cut(model, inputs, fold=True)
    assert report.drift > 1e-3 or report.notes


def test_a_reader_without_a_place_for_constants_is_left_alone():
    model, inputs = constant_neuron(nn.Linear(6, 3, bias=False))
    report = cut(model, inputs, fold=True)
    assert report.notes == () and report.drift > 1e-2
    with torch.no_grad():
        small = model[2].weight.clone()
    assert small.shape == (3, 5)


def test_nothing_is_folded_in_an_exact_cut():
    model, inputs = nets.mlp(4, 6, 3), X
    killing.kill(model, demp.trace(model, inputs), {"1": [2]})
    before = model[2].bias.detach().clone()
    report = demp.cut(model, {"1": [2]}, example_inputs=inputs, fold=True)
    assert report.notes == () and torch.equal(before, model[2].bias)


@settings(max_examples=12)
@given(st.sampled_from(["residual", "plain", "tokens", "dense"]), st.integers(0, 1000))
def test_a_fold_never_makes_it_worse(kind, seed):
    torch.manual_seed(seed)
    reports, states = [], []
    for fold in (False, True):
        torch.manual_seed(seed)
        model, inputs = getattr(nets, kind)(activation="leaky_relu")
        graph = demp.trace(model, inputs)
        dead = killing.some_dead(graph, 0.3, random.Random(seed))
        reports.append(demp.cut(model, dead, example_inputs=inputs, exact=False, fold=fold, graph=graph))
        states.append((comparing.state(model), model))
    plain, folded = reports
    assert plain.removed == folded.removed
    if folded.notes:
        assert folded.drift < plain.drift
    else:
        assert folded.drift == plain.drift and comparing.same_state(states[0][0], states[1][1])


def test_a_failed_cut_takes_its_fold_back(monkeypatch):
    model, inputs = constant_neuron(nn.Linear(6, 3))
    before = comparing.state(model)

    def fail(*args):
        raise MemoryError("no room")

    monkeypatch.setattr("demp.surgery.transaction.apply", fail)
    with pytest.raises(MemoryError):
        cut(model, inputs, fold=True)
    assert comparing.same_state(before, model) and record_of(model) is None
