"""Calls that depend on how many neurons an axis has, and that a cut carries out as planned."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from width_cases import CASES, ROWS, made, on_rows

import comparing
import demp
import killing
import nets
from demp.graph import places
from demp.graph.calls import model_calls
from nets import Forward

PLANNED = (
    "chunk",
    "split by attributes",
    "slices",
    "narrow",
    "hard-coded view",
    "mean over channels",
    "spatial attention",
)
ALONG = ("ECA", "channel shuffle")


def cut_once(name: str) -> tuple[nn.Module, tuple]:
    model, inputs = made(name)
    graph = demp.trace(model, inputs)
    first = next(layer.name for layer in graph.layers)
    dead = {first: [1, 2, 6]}
    killing.kill(model, graph, dead)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 3
    assert model_calls(model)
    return model.eval(), inputs


def other_batches(inputs: tuple) -> list[tuple]:
    return [inputs, tuple(torch.randn(3, *x.shape[1:], dtype=x.dtype) for x in inputs)]


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_torch_fx_reads_planned_calls(name):
    model, inputs = cut_once(name)
    traced = torch.fx.symbolic_trace(model)
    for x in other_batches(inputs):
        assert comparing.gap([model(*x).detach()], [traced(*x).detach()]) < 1e-12


def test_torch_fx_refuses_what_runs_along_the_channels():
    with pytest.raises(demp.UsageError, match="use torch.export"):
        torch.fx.symbolic_trace(cut_once("functional channel shuffle")[0])


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_export_and_jit_trace_run_planned_calls(name):
    model, inputs = cut_once(name)
    wanted = model(*inputs).detach()
    assert comparing.gap([wanted], [torch.export.export(model, inputs).module()(*inputs).detach()]) < 1e-12
    assert comparing.gap([wanted], [torch.jit.trace(model, inputs)(*inputs).detach()]) < 1e-12


def test_a_slice_that_takes_all_that_is_left_is_still_planned():
    model, inputs = on_rows(lambda s, h: torch.cat([F.relu(s.one(h[:, 3:])), h[:, :3]], 1), 7, one=nn.Linear(5, 4))
    model, inputs = nets.settle(model), (inputs[0].double(),)
    for neurons, left in (([0, 1, 2], 5), ([1, 3], 3)):
        graph = demp.trace(model, inputs)
        killing.kill(model, graph, {"relu": neurons})
        before = comparing.outputs(model, inputs)
        report = demp.cut(model, {"relu": neurons}, example_inputs=inputs, graph=graph)
        assert report.removed == len(neurons) and model.one.in_features == left
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-12


@pytest.mark.parametrize("name", ["chunk", "ECA"])
def test_what_reads_source_is_refused(name):
    model, inputs = cut_once(name)
    with pytest.raises(demp.UsageError, match="other widths"):
        torch.jit.script(model)
    with pytest.raises(demp.ExportError, match="only a cut can carry out as planned"):
        demp.plain(model, inputs)


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_copies_and_files_carry_planned_calls(name, tmp_path):
    model, inputs = cut_once(name)
    wanted = model(*inputs).detach()
    assert comparing.gap([wanted], [copy.deepcopy(model)(*inputs).detach()]) == 0.0
    demp.save(model, tmp_path / "model", example_inputs=inputs)
    loaded = demp.load(lambda: CASES[name]()[0].double(), tmp_path / "model").eval()
    assert comparing.gap([wanted], [loaded(*inputs).detach()]) == 0.0


@pytest.mark.parametrize("name", ["chunk", "mean over channels"])
def test_a_planned_call_that_does_not_run_raises(name):
    model, inputs = cut_once(name)
    model._function = lambda s, x: s.head(F.relu(s.conv(x)).mean((2, 3)))
    with pytest.raises(RuntimeError, match=r"did not run|shapes cannot"):
        model(*inputs)


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_without_joins_nothing_is_planned(name):
    model, inputs = made(name)
    graph = demp.trace(model, inputs, joins=False)
    assert graph.calls == () and not bool(graph.layers[0].removable.any()) and graph.refused


def test_a_module_that_runs_twice_keeps_what_it_splits():
    def forward(s, x):
        return s.head(F.relu(s.part(s.part(F.relu(s.fc(x))))))

    def part(s, h):
        a, b = h.chunk(2, 1)
        return torch.cat([F.relu(s.one(a)), b], 1)

    inner = Forward(part, one=nn.Linear(4, 4))
    model = nets.settle(Forward(forward, fc=nn.Linear(6, 8), part=inner, head=nn.Linear(8, 2)))
    graph = demp.trace(model, (ROWS.double(),))
    assert graph.calls == () and graph.removable() == 0
    assert any("shrink unequally" in refusal.reason for refusal in graph.refused)


def test_training_that_splits_otherwise_keeps_the_neurons():
    def forward(s, x):
        h = F.relu(s.fc(x))
        a, b = h.split((3, 5) if s.training else (5, 3), 1)
        return s.head(torch.cat([h, F.relu(s.one(b if s.training else a))], 1))

    model = nets.settle(Forward(forward, fc=nn.Linear(6, 8), one=nn.Linear(5, 4), head=nn.Linear(12, 2)))
    graph = demp.trace(model, (ROWS.double(),))
    assert not bool(graph.layer("relu").removable.any())


def test_a_mean_counts_a_removed_neuron_as_the_zero_it_was():
    """By hand: three of eight neurons gone, the mean still divides by eight."""
    model, _ = cut_once("mean over channels")
    (plan,) = model_calls(model)[""].values()
    assert plan.width == 5 and plan.scale == 5 / 8


def test_a_mean_of_no_neurons_is_the_zero_that_it_was(tmp_path):
    def forward(s, x):
        h = F.relu(s.fc(x))
        return s.head(torch.cat([h[:, 3:], h[:, :3].mean(1, keepdim=True)], 1))

    torch.manual_seed(0)
    model = Forward(forward, fc=nn.Linear(6, 8), head=nn.Linear(6, 2)).double()
    graph = demp.trace(model, (ROWS.double(),))
    killing.kill(model, graph, {"relu": [0, 1, 2]})
    before = model(ROWS.double()).detach()
    assert demp.cut(model, {"relu": [0, 1, 2]}, example_inputs=(ROWS.double(),), graph=graph).removed == 3
    torch.testing.assert_close(model(ROWS.double()), before, rtol=0, atol=1e-12)
    demp.save(model, tmp_path / "model", example_inputs=(ROWS.double(),))
    parts = {"fc": nn.Linear(6, 8), "head": nn.Linear(6, 2)}
    loaded = demp.load(lambda: Forward(forward, **parts).double(), tmp_path / "model")
    assert torch.equal(loaded(ROWS.double()), model(ROWS.double()))
    model(ROWS.double()).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


class Written(nn.Module):
    """Attention that has the number of heads written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def heads(self, h, shape):
        return h.view(*shape, 4, 4)

    def forward(self, x):
        q, k, v = (self.heads(fc(x), x.shape[:2]).transpose(1, 2) for fc in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1))


class Inferred(Written):
    def heads(self, h, shape):
        return h.view(*shape, -1, 4)


def test_a_module_whose_views_follow_a_cut_as_they_are_written_has_no_plan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Written(), nn.LayerNorm(16), Inferred()).double().eval()
    x = torch.randn(2, 5, 16).double()
    graph = demp.trace(model, (x,))
    dead = {layer.name: [2] for layer in graph.layers}
    assert len(dead) == 2 and {call.seat[0] for call in graph.calls if call.needed} == {"1"}
    killing.kill(model, graph, dead)
    dense = copy.deepcopy(model)
    demp.cut(model, dead, example_inputs=(x,), graph=graph)
    assert set(model_calls(model)) == {"1"}
    for shape in ((2, 5, 16), (3, 7, 16)):
        other = torch.randn(shape).double()
        torch.testing.assert_close(model(other), dense(other), rtol=0, atol=1e-12)


class Halves(nn.Module):
    """Sums over halves that a cut leaves unequal, and over halves of something that may be given, first or last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc, self.head = False, nn.Linear(6, 8), nn.Linear(2, 2)

    def forward(self, x, more=None):
        h = torch.relu(self.fc(x))
        before = more.chunk(2, 1)[0].sum() if more is not None and self.first else 0
        a, b = h.chunk(2, 1)
        behind = more.chunk(2, 1)[0].sum() if more is not None and not self.first else 0
        return self.head(torch.stack([a.sum(1), b.sum(1)], 1)) + before + behind


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_a_call_that_the_trace_had_not_or_had_is_told_by_its_place(given, training):
    torch.manual_seed(0)
    model, x = Halves().double().eval(), torch.randn(16, 6).double()
    more = torch.randn(16, 5).double()
    inputs = (x, more) if given else (x,)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"relu": [1, 2, 6]})
    demp.cut(model, {"relu": [1, 2, 6]}, example_inputs=inputs, graph=graph)
    assert model_calls(model)
    before = model.train(training)(x)
    model.first = not given
    assert torch.equal(model(x), before)
    torch.testing.assert_close(model(x, more), before + more.chunk(2, 1)[0].sum())


def test_without_places_another_number_of_calls_is_an_error(monkeypatch):
    """As under torch.compile, and where the code is not that which was traced."""
    torch.manual_seed(0)
    model, x = Halves().double().eval(), torch.randn(16, 6).double()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"relu": [1, 2, 6]})
    demp.cut(model, {"relu": [1, 2, 6]}, example_inputs=(x,), graph=graph)
    before = model(x)
    monkeypatch.setattr(places, "named", lambda code: "other")
    assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError, match=r"made 2 calls \(split\), and 1 when it was traced"):
        model(x, torch.randn(16, 5).double())
