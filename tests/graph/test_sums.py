"""Planned sums are known by where they stand in the code, whatever else is added beside them."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import demp
import killing
from demp.activity.observe import observing
from demp.graph import places
from demp.graph.joins import joins_of, set_joins


class Optional(nn.Module):
    """A block that may add something else first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, more=None):
        h = self.b(torch.relu(self.a(x)))
        return torch.relu((h if more is None else h + more) + x)


class OfOptional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Linear(4, 8), Optional(), Optional(), nn.Linear(8, 3)

    def forward(self, x, more=None):
        return self.head(self.two(self.one(torch.relu(self.stem(x))), more))


@pytest.fixture
def optional():
    torch.manual_seed(1)
    model, x = OfOptional().double().eval(), torch.randn(50, 4).double()
    demp.cut(model, {"one.relu#2": [1, 2, 5], "two.relu#2": [3, 4, 6]}, example_inputs=(x,), exact=False)
    return model, x


@pytest.mark.parametrize("training", [True, False])
def test_a_sum_that_the_trace_had_not_is_none_of_the_planned_ones(optional, training):
    """Though the widths are equal, so that a sum taken for another would show in nothing but the values."""
    model, x = optional
    before = model.train(training)(x)
    assert torch.equal(model(x, torch.zeros(1, 5).double()), before)
    more = torch.randn(50, 5).double()
    model.two.b.register_forward_hook(lambda module, given, out: out + more)
    wanted = model(x)
    model.two.b._forward_hooks.clear()
    assert torch.equal(model(x, more), wanted)


def test_copies_and_files_know_sums_by_their_place(optional, tmp_path):
    model, x = optional
    demp.save(model, tmp_path / "model", example_inputs=(x,))
    loaded = demp.load(lambda: OfOptional().double(), tmp_path / "model").eval()
    more = torch.randn(50, 5).double()
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x, more), model(x, more))


def test_without_places_another_number_of_sums_is_an_error(optional, monkeypatch):
    """As under torch.compile, in files of earlier versions, and where the code is not that which was traced."""
    model, x = optional
    before = model(x)
    monkeypatch.setattr(places, "named", lambda code: "other")
    assert torch.equal(model(x), before)
    for training in (True, False):
        with pytest.raises(RuntimeError, match="the forward of Optional has made 2 sums, and 1 when it was traced"):
            model.train(training)(x, torch.zeros(1, 5).double())
    plans = {n: replace(plan, places=()) for n, plan in joins_of(model.two).items()}
    monkeypatch.undo()
    set_joins(model.two, plans)
    with pytest.raises(RuntimeError, match="the forward of Optional has made 2 sums, and 1 when it was traced"):
        model(x, torch.zeros(1, 5).double())


def test_a_planned_sum_in_a_loop_runs_as_often_as_in_the_trace():
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.parts = nn.Linear(4, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.head, self.rounds = nn.Linear(8, 3), 3

        def forward(self, x):
            h = torch.relu(self.stem(x))
            for part in self.parts[: self.rounds]:
                h = torch.relu(part(h) + h)
            return self.head(h)

    torch.manual_seed(0)
    model, x = Rounds().double().eval(), torch.randn(20, 4).double()
    graph = demp.trace(model, (x,))
    dead = {layer.name: [n, n + 2] for n, layer in enumerate(graph.layers)}
    killing.kill(model, graph, dead)
    before = model(x).detach()
    demp.cut(model, dead, example_inputs=(x,), graph=graph)
    assert len(joins_of(model)) == 3
    torch.testing.assert_close(model(x), before)
    model.rounds = 2
    with pytest.raises(RuntimeError, match="has made 2 sums in .*forward, and 3 when it was traced"):
        model(x)


class Adapted(nn.Module):
    """A layer, and what a low-rank adapter adds to it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2, bias=False).double()
        self.up = nn.Linear(2, layer.out_features, bias=False).double()

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_what_hooks_and_parts_put_in_later_add_is_none_of_the_sums():
    torch.manual_seed(1)
    model, x = OfOptional().double().eval(), torch.randn(50, 4).double()
    demp.cut(model, {"one.relu#2": [1, 2, 5], "two.relu#2": [3, 4, 6]}, example_inputs=(x,), exact=False)
    before = model(x)
    hook = model.two.b.register_forward_hook(lambda module, given, out: (out + 1.0 * out, None)[1])
    assert torch.equal(model(x), before) and torch.equal(model.train()(x), before)
    hook.remove()
    model.two.b = Adapted(model.two.b)
    adapted = model(x)
    assert not torch.equal(adapted, before)
    with torch.no_grad():
        layer, more = model.two.b.layer, model.two.b.up.weight @ model.two.b.down.weight
        layer.weight += more
    model.two.b = layer
    torch.testing.assert_close(model(x), adapted)


@pytest.mark.parametrize("given", [True, False])
def test_reads_of_sums_are_watched_at_their_place(optional, given):
    """Beside a sum that the trace had not: the stream that a planned sum reads is the same tensor."""
    model, x = optional
    graph = demp.trace(model, (x,))
    (read,) = (read for read in graph.reads if read.seat is not None and read.seat[0] == "two")
    seen = []
    with observing(model, graph, lambda read, operand: seen.append((read.seat, operand.clone()))):
        model(x, torch.randn(50, 5).double() if given else None)
    (operand,) = (operand for seat, operand in seen if seat == read.seat)
    assert torch.equal(operand, model.one(torch.relu(model.stem(x))))


def test_reads_of_means_are_watched_at_their_place():
    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 8), nn.Linear(1, 3)

        def forward(self, x, more=None):
            h = torch.relu(self.fc(x))
            shift = 0 if more is None else more.mean(1, keepdim=True)
            return self.head(h.mean(1, keepdim=True) + shift)

    model, x = Means().double().eval(), torch.randn(20, 4).double()
    graph, seen = demp.trace(model, (x,)), []
    with observing(model, graph, lambda read, operand: seen.append(operand.clone())):
        model(x, torch.randn(20, 8).double())
    assert len(seen) == 1 and torch.equal(seen[0], torch.relu(model.fc(x)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_graph_that_was_compiled_behind_a_break_adds_once(backend: str):
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = torch.relu(self.a(x))
            torch._dynamo.graph_break()
            return torch.relu(self.b(y) + x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Broken(), Broken(), nn.Linear(8, 3))
    x = torch.randn(8, 6)
    demp.cut(model, {"2.relu#2": [0], "3.relu#2": [1, 4]}, example_inputs=(x,), exact=False)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x))
