"""Neurons that other weights read before any activation go like any other; without the option nothing changes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from bottlenecks import Mobile, images, made
from demp.graph import NeuronGraph
from demp.regularization.scales import OutputScales, Shrink
from exactly import cut_twice, offered, reasons, trained
from twins import stays


class Before(nn.Module):
    """A block that adds to a stream of activations what a later block reads without one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.inner, self.shortcut = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.branch(x)
        y = self.inner(F.relu(self.norm(x))) + self.shortcut(x)
        return self.head(F.relu(y).mean((2, 3)))


def two_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 6), nn.Linear(6, 3))


def two_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(),
        nn.Linear(6 * 16, 5), nn.BatchNorm1d(5), nn.Linear(5, 4),
    )  # fmt: skip


class Steps(nn.Module):
    """Activations in several steps, most of which nothing reads, before and behind what has none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(steps(self.c(self.b(steps(self.a(x))))))


def steps(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * (x * x * x))))


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "linear": (two_linear, torch.randn(4, 5).double(), {"0.linear": 9, "3.linear": 6}),
    "steps": (Steps, torch.randn(4, 5).double(), {"b.linear": 7}),
    "convolutions": (two_convolutions, images(), {"0.linear": 8, "5.linear": 5}),
    "mobile": (Mobile, images(), {"blocks.0.project.linear": 8, "blocks.1.project.linear": 16}),
    "pre-activation": (Before, images(), {"branch.linear": 8}),
}


def linear(graph: NeuronGraph) -> dict[str, int]:
    """Layers of linear neurons -> how many may go."""
    kinds = {layer.name for layer in graph.layers if layer.activation == "linear"}
    return {name: count for name, count in offered(graph).items() if name in kinds}


def same_graph(one: NeuronGraph, other: NeuronGraph) -> bool:
    """The same layers, classes, slots and reads, in the same order."""
    pairs = zip(one.slots + one.layers + one.reads, other.slots + other.layers + other.reads, strict=True)
    return all(torch.equal(a.classes, b.classes) for a, b in pairs) and one.refused == other.refused


@pytest.mark.parametrize("name", CASES)
def test_zeros_go_exactly_and_only_if_they_are_asked_for(name: str):
    make, x, expected = CASES[name]
    model = made(make)
    graph, plain = demp.trace(model, (x,), linear=True), demp.trace(model, (x,))
    assert linear(graph) == expected and linear(plain) == {}
    more = {"relu#2": 8} if name == "pre-activation" else {}  # the same channels behind a norm
    assert {**offered(plain), **more} == {key: n for key, n in offered(graph).items() if key not in expected}
    assert sum("read before any activation" in refusal.reason for refusal in plain.refused) > 0
    assert "read before any activation" not in reasons(graph)
    for layer in expected:
        made_by = {weight for weight, _ in graph.layer(layer).producers}
        assert graph.layer(layer).reads and not made_by & {weight for weight, _ in graph.layer(layer).reads}
    assert all(cut_twice(model, (x,), linear=True, low=0.0 if name == "convolutions" else -100.0))
    assert same_graph(plain, demp.trace(made(make), (x,), linear=False))


@pytest.mark.parametrize("name", CASES)
def test_all_of_them_but_one_go_alone(name: str):
    make, x, expected = CASES[name]
    model = made(make)
    graph = demp.trace(model, (x,), linear=True)
    dead = {layer: list(range(1, count)) for layer, count in expected.items()}
    if name == "pre-activation":  # what the stream brings to the sum, and what else reads the sum
        dead["relu"] = dead["relu#2"] = dead["branch.linear"]
    killing.kill(model, graph, dead)
    before, after = comparing.outputs(model, (x,)), trained(model, (x,))
    assert demp.cut(model, dead, example_inputs=(x,), linear=True).removed >= sum(map(len, dead.values()))
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
    assert comparing.gap(after, trained(model, (x,))) < 1e-10


def test_live_ones_stay():
    model, x = made(two_linear), CASES["linear"][1]
    before = comparing.state(model)
    with torch.no_grad():
        model[0].weight[[2, 3]] = 0  # one is constant, one is never positive
        model[0].bias[2], model[0].bias[3] = 0.5, 0
        model[0].weight[4], model[0].bias[4] = 0, -0.5
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match=r"neurons of 0.linear are not dead on the example inputs"):
        demp.cut(model, {"0.linear": [2, 3]}, example_inputs=(x,), linear=True)
    assert comparing.same_state(before, model)
    for criterion in ("negative-only", "sum", "exact"):
        found = demp.Criterion(kind=criterion)
        assert found.resolve("linear") == "exact"
    out = comparing.outputs(model, (x,))
    report = demp.cut(model, {"0.linear": [2, 3, 4]}, example_inputs=(x,), linear=True, constants=True)
    assert report.removed == 3 and model[0].weight.shape == (6, 5)
    assert comparing.gap(out, comparing.outputs(model, (x,))) < 1e-10


@pytest.mark.parametrize("name", ["mobile", "pre-activation"])
def test_what_has_faded_to_zero_is_zero_where_it_is_read(name: str):
    make, x, expected = CASES[name]
    model = made(make)
    graph = demp.trace(model, (x,), linear=True)
    dead = {layer: [1, 4] for layer in (expected if name == "mobile" else ("relu", "relu#2", *expected))}
    factors = torch.where(killing.classes_of(graph, dead), 0.0, 1.0)
    OutputScales(model, graph).apply(Shrink(factors=factors), graph.dense)
    out = comparing.outputs(model, (x,))
    assert demp.cut(model, dead, example_inputs=(x,), graph=graph).removed >= 2 * len(dead)
    assert comparing.gap(out, comparing.outputs(model, (x,))) < 1e-10


def test_what_is_left_takes_the_steps_of_a_twin_with_zeros():
    """Zero on both sides: nothing moves such a channel in the dense twin, so that it stays at zero by itself."""
    model, x = made(Mobile), images()
    graph = demp.trace(model, (x,), linear=True)
    dead = {"blocks.0.project.linear": [1, 6], "blocks.1.project.linear": [0, 5, 11]}
    killing.kill(model, graph, dead)
    chosen = killing.classes_of(graph, dead)
    with torch.no_grad():
        for slot in graph.slots:
            tensor = comparing.tensors_of(model)[slot.tensor]
            for position in chosen[slot.classes].nonzero().flatten().tolist() if slot.axis == 1 else ():
                tensor.select(1, position).zero_()
    twin = copy.deepcopy(model)
    steps = [torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1) for net in (model, twin)]
    for step in range(4):
        if step == 1:
            cut = demp.cut(model, dead, example_inputs=(x,), graph=graph, optimizer=steps[0])
            assert cut.removed == 5
        for net, optimizer in zip((model, twin), steps, strict=True):
            F.cross_entropy(net(images(step, 8)), torch.arange(8) % 4).backward()
            optimizer.step()
            optimizer.zero_grad()
    record = demp.surgery.record_of(model)
    assert record is not None and model.blocks[3].project.weight.shape[0] == 13
    for name, tensor in comparing.state(twin).items():
        left = stays(name, tensor, dict(record.kept)) - comparing.tensors_of(model)[name]
        assert float(left.detach().abs().max()) < 1e-10, name


def test_a_budget_takes_linear_neurons_and_its_network_is_saved_and_loaded(tmp_path: Path):
    model = made(Mobile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(images(),), total_steps=16, budget=demp.Budget(flops=0.5), linear=True,
        rounds=2,
    )  # fmt: skip
    for step in range(16):
        F.cross_entropy(model(images(step, 8)), torch.arange(8) % 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    share = pruner.flops / pruner.graph.dense.flops()
    assert 0.49 < share <= 0.5
    widths = {layer.name: layer.width for layer in pruner.graph.layers}
    left = pruner.state.widths
    assert sum(widths[name] - left[name] for name in linear(pruner.graph)) > 0
    drifts = [report.drift for report in pruner.history if report.removed]
    assert drifts and all(drift is not None and drift < 1e-10 for drift in drifts)
    demp.save(model, tmp_path / "model", example_inputs=(images(),))
    loaded = demp.load(lambda: made(Mobile), tmp_path / "model").eval()
    model.eval()
    assert float((loaded(images(9)) - model(images(9))).detach().abs().max()) < 1e-12


class Gate(nn.Module):
    """Reads what ``kind`` makes of a weight's outputs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.made, self.read, self.norm = kind, nn.Linear(5, 6), nn.Linear(6, 3), nn.LayerNorm(6)
        self.plain = nn.BatchNorm1d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.made(x)
        y = {
            "a sigmoid": lambda: x.sigmoid(),
            "a sigmoid that is added": lambda: x + x.sigmoid(),
            "a sigmoid that is used twice": lambda: x * (gate := x.sigmoid()[None]) + gate,
            "a sigmoid and noise": lambda: torch.rand_like(x) * x.sigmoid() if self.training else x,
            "a sigmoid times a parameter": lambda: x.sigmoid() * self.read.weight[0],
            "a sigmoid times a gate of a parameter": lambda: x.sigmoid() * self.norm.weight.sigmoid(),
            "a sigmoid in a norm": lambda: F.normalize(x.sigmoid()),
            "a comparison": lambda: (x >= 0).double(),
            "a comparison with a parameter": lambda: (x > self.read.bias.mean()).double(),
            "an opposite": lambda: (~(x > 0)).double(),
            "a number": lambda: x + 1,
            "a layer norm": lambda: self.norm(x),
            "both": lambda: self.norm(x) + x,
            "a mean": lambda: x - x.mean(-1, keepdim=True),
            "a product": lambda: x @ x.t() @ x,
            "no scale": lambda: self.plain(x),
            "an output": lambda: x,
            "a softmax": lambda: x.softmax(0),
            "a border": lambda: F.pad(x, (0, 0, 1, 1), value=1.0),
            "noise": lambda: x + 0.1 * torch.randn_like(x) if self.training else x,
        }[self.kind]()
        return torch.cat([self.read(y), x], 1) if self.kind == "an output" else self.read(y)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("a sigmoid", "sigmoid makes other numbers of zeros"),
        ("a sigmoid that is added", "sigmoid makes other numbers of zeros"),
        ("a sigmoid that is used twice", "sigmoid makes other numbers of zeros"),
        ("a sigmoid and noise", "sigmoid makes other numbers of zeros"),
        ("a sigmoid times a parameter", "sigmoid makes other numbers of zeros"),
        ("a sigmoid times a gate of a parameter", "sigmoid makes other numbers of zeros"),
        ("a sigmoid in a norm", "read before any activation"),
        ("a comparison", "ge makes other numbers of zeros"),
        ("a comparison with a parameter", "gt makes other numbers of zeros"),
        ("an opposite", "bitwise_not makes other numbers of zeros"),
        ("a number", "add makes other numbers of zeros"),
        ("a layer norm", "layer_norm over the neuron axis mixes neurons"),
        ("both", "layer_norm over the neuron axis mixes neurons"),
        ("a mean", "read before any activation (by a mean over neurons at the model itself)"),
        ("a product", "product of two activations"),
        ("no scale", "a batch norm without a scale makes other numbers of zeros"),
        ("an output", ""),
        ("a softmax", "softmax makes other numbers of zeros"),
        ("a border", "constant_pad_nd makes other numbers of zeros"),
        ("noise", "(in the training forward)"),
    ],
)
def test_where_they_stay(kind: str, why: str):
    graph = demp.trace(Gate(kind), (torch.randn(4, 5),), linear=True)
    assert graph.removable() == 0 and why in reasons(graph), reasons(graph)


@pytest.mark.parametrize("chosen", [lambda x: x * (x >= 0), lambda x: x * (x > 0), lambda x: (x > 0).to(x.dtype)])
def test_what_a_comparison_leaves_zero_may_go(chosen: Callable[[Tensor], Tensor]):
    class Compared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made, self.read = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(chosen(self.made(x)))

    torch.manual_seed(0)
    assert min(cut_twice(Compared().double(), (torch.randn(8, 5).double(),), linear=True)) > 0


class Squeezed(nn.Module):
    """Squeeze and excitation, as many write it, of what no activation has touched."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.squeeze, self.read = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Conv2d(8, 5, 3)
        self.excite = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        y = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3)))))).view(-1, x.shape[1], 1, 1)
        return self.read(x * y.expand_as(x)).mean((2, 3))


def test_a_gate_that_multiplies_zeros_leaves_them_zero():
    torch.manual_seed(0)
    model, x = Squeezed().double(), (torch.randn(3, 3, 8, 8).double(),)
    assert demp.trace(model, x, linear=True).refused == ()
    assert min(cut_twice(model, x, linear=True)) > 0 and model.make.out_channels == model.excite.out_features < 8


def test_inspection_shows_them():
    row = next(r for r in demp.inspect(made(Mobile), (images(),), linear=True).rows if r.activation == "linear")
    assert (row.layer, row.width, row.removable, row.reason) == ("blocks.0.project.linear", 8, 8, "")
