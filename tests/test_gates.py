"""Scores of gates against finite differences, brute force on tiny networks, and gates built into the network."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import demp
from demp.errors import UsageError
from demp.importance.gates import FORWARDS, Scoring, scores
from demp.train import models
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, batch_at, build
from thinning import covering

KINDS = ("sensitivity", "weight-flow", "gate-flow")


def pairs(shape: tuple[int, ...] = IMAGE, n: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [batch_at(step, shape) for step in range(n)]


def scored(model: nn.Module, shape: tuple[int, ...] = IMAGE, **options) -> tuple[demp.NeuronGraph, Tensor]:
    graph = demp.trace(model, (batch_at(0, shape)[0],))
    found = scores(model, graph.dense, Scoring(**options), pairs(shape), F.cross_entropy)
    return graph, found.values


class Gate(nn.Module):
    """A factor on every channel."""

    def __init__(self, inner: nn.Module, width: int, *, after: bool) -> None:
        super().__init__()
        self.inner, self.after = inner, after
        self.c = nn.Parameter(torch.ones(width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        return self.inner(x) * self.c.view(shape) if self.after else self.inner(x * self.c.view(shape))


def literal(model: nn.Module, names: dict[str, int], kind: str, *, after: bool, shape=IMAGE) -> dict[str, Tensor]:
    """The formula on a copy of the network that has gates as modules around some of its modules."""
    gated = copy.deepcopy(model).eval()
    for name, width in names.items():
        setattr(gated, name, Gate(getattr(gated, name), width, after=after))
    gates = [getattr(gated, name).c for name in names]
    weights = [p for n, p in gated.named_parameters() if not n.endswith(".c")]
    total = [torch.zeros_like(c) for c in gates]
    constant = [torch.zeros_like(w) for w in weights]
    for x, y in pairs(shape):
        for g, found in zip(constant, torch.autograd.grad(F.cross_entropy(gated(x), y), weights), strict=True):
            g += found
    for x, y in pairs(shape):
        loss = F.cross_entropy(gated(x), y)
        if kind == "sensitivity":
            found = torch.autograd.grad(loss, gates)
        elif kind == "weight-flow":
            slopes = torch.autograd.grad(loss, weights, create_graph=True)
            flow = sum((g * s).sum() for g, s in zip(constant, slopes, strict=True))
            found = torch.autograd.grad(flow, gates)
        else:
            slopes = torch.autograd.grad(loss, gates, create_graph=True)
            found = torch.autograd.grad(sum((s.detach() * s).sum() for s in slopes), gates)
        for t, f in zip(total, found, strict=True):
            t += f
    return dict(zip(names, total, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
def test_gates_on_activations_equal_gates_built_into_the_network(kind: str, act: type[nn.Module]):
    cases = (
        (build(PlainNet, act=act), {"act1": 6, "act2": 5, "act3": 7}, IMAGE),
        (build(ResidualNet, act=act), {"stem_act": 6, "act1": 8, "act2": 6}, IMAGE),
        (build(Mlp, act=act), {"act1": 12, "act2": 10}, VECTOR),
    )
    for model, names, shape in cases:
        graph, found = scored(model, shape, kind=kind)
        for name, wanted in literal(model, names, kind, after=True, shape=shape).items():
            torch.testing.assert_close(found[graph.layer(name).classes], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_before_the_activation_and_before_the_norm(kind: str):
    model = build(PlainNet, act=nn.GELU)
    for at, names in (
        ("norm", {"act1": 6, "act2": 5, "act3": 7}),
        ("producer", {"norm1": 6, "norm2": 5, "act3": 7}),
    ):
        graph, found = scored(model, kind=kind, at=at)
        for name, wanted in literal(model, names, kind, after=False).items():
            layer = graph.layer(name.replace("norm", "act"))
            torch.testing.assert_close(found[layer.classes], wanted, rtol=1e-9, atol=1e-12)


def test_for_relu_a_gate_before_and_after_the_activation_is_the_same():
    model = build(PlainNet)
    graph, at_activation = scored(model)
    _, at_norm = scored(model, at="norm")
    torch.testing.assert_close(at_activation, at_norm, rtol=1e-9, atol=1e-12)
    assert bool((at_activation[graph.layer("act1").classes] != 0).any())


def test_sensitivity_is_the_slope_of_the_loss():
    model = build(ResidualNet, act=nn.SiLU).eval()
    graph, found = scored(model)
    layer, step = graph.layer("act2"), 1e-5

    def loss(factor: float, neuron: int) -> float:
        twin = copy.deepcopy(model)
        twin.head.weight.data[:, neuron] *= factor
        return sum(F.cross_entropy(twin(x), y).item() for x, y in pairs())

    for neuron in range(layer.width):
        slope = (loss(1 + step, neuron) - loss(1 - step, neuron)) / (2 * step)
        assert found[layer.classes[neuron]].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_after_a_cut_the_scores_are_those_of_the_small_network_in_dense_numbering():
    model = build(ResidualNet)
    example = (batch_at(0, IMAGE)[0],)
    graph = demp.trace(model, example)
    gone = graph.none_removed()
    gone[graph.layer("act1").classes[[1, 4]]] = True
    gone[graph.layer("act2").classes[[0]]] = True
    gone[graph.layer("stem_act").classes[[2]]] = True
    demp.cut(
        model,
        {layer.name: gone[layer.classes] for layer in graph.layers},
        example_inputs=example,
        exact=False,
        graph=graph,
    )
    for kind in KINDS:
        found = scores(model, graph.at(gone), Scoring(kind=kind), pairs(), F.cross_entropy).values
        assert not bool(found[gone].any())
        fresh = demp.trace(model, example)
        again = scores(model, fresh.dense, Scoring(kind=kind), pairs(), F.cross_entropy).values
        for layer in graph.layers:
            kept = layer.classes[~gone[layer.classes]]
            mine = again[fresh.layer(layer.name).classes]
            torch.testing.assert_close(found[kept].sort().values, mine.sort().values, rtol=1e-9, atol=1e-12)


class InPlace(PlainNet):
    """Activations in place, dropout, batch norm."""

    def __init__(self) -> None:
        super().__init__(act=lambda: nn.ReLU(inplace=True))  # type: ignore[arg-type]
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_model_changes_and_scores_repeat(kind: str):
    model = build(InPlace).train()
    model.conv1.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for statistics in (False, True):
        _, one = scored(model, kind=kind, batch_statistics=statistics)
        _, two = scored(model, kind=kind, batch_statistics=statistics)
        assert torch.equal(one, two)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert model.norm1.training
    assert all(p.grad is None for p in model.parameters())


def test_the_batch_statistics_are_those_of_training():
    model = build(PlainNet)
    _, plain = scored(model)
    graph, found = scored(model, batch_statistics=True)
    wanted = torch.zeros(6, dtype=torch.float64)
    for x, y in pairs():
        twin = copy.deepcopy(model).train()
        twin.act1 = Gate(twin.act1, 6, after=True)
        wanted += torch.autograd.grad(F.cross_entropy(twin(x), y), twin.act1.c)[0]
    torch.testing.assert_close(found[graph.layer("act1").classes], wanted, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, plain)


def test_inside_autocast_scores_are_exact():
    model = build(PlainNet)
    _, plain = scored(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = scored(model)
    assert torch.equal(plain, found)


@pytest.mark.parametrize(("kind", "at"), covering(KINDS, ("activation", "producer")))
def test_the_cost_that_is_reported_is_the_cost(kind: str, at: str):
    model = models.build("resnet18", num_classes=10, in_channels=3, image_size=16, width=0.125)
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    graph = demp.trace(model, (x,))
    with FlopCounterMode(display=False) as plain:
        model(x)
    with FlopCounterMode(display=False) as counter:
        found = scores(model, graph.dense, Scoring(kind=kind, at=at), [(x, y)], F.cross_entropy)
    assert found.forwards == FORWARDS[kind] * len(x)
    counted = counter.get_total_flops() / plain.get_total_flops()
    assert 0.95 * FORWARDS[kind] <= counted <= 1.01 * FORWARDS[kind]


class Detached(PlainNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_bad_input_is_refused_with_a_reason():
    with pytest.raises(UsageError, match="does not depend on any gate"):
        scored(build(Detached))
    model = build(PlainNet)
    graph = demp.trace(model, (batch_at(0, IMAGE)[0],))
    nothing = graph.none_removed()
    with pytest.raises(UsageError, match="no batch to score on"):
        scores(model, graph.at(nothing), Scoring(), [], F.cross_entropy)
    with pytest.raises(UsageError, match="must be a pair"):
        scores(model, graph.at(nothing), Scoring(), [batch_at(0, IMAGE)[0]], F.cross_entropy)
    with pytest.raises(UsageError, match="one number"):
        scores(model, graph.at(nothing), Scoring(), pairs(), lambda out, y: out)
    with pytest.raises(UsageError, match="not finite"):
        scores(model, graph.at(nothing), Scoring(), pairs(), lambda out, y: out.sum() * float("nan"))
    with pytest.raises(UsageError, match="choose one of"):
        Scoring(kind="slope")
    with pytest.raises(UsageError, match="at least 1"):
        Scoring(batches=0)


class Mixed(nn.Module):
    """Its second layer reads neurons and the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(11, 3)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        neurons = torch.relu(self.inner(x))
        return self.head(torch.cat([neurons if c is None else neurons * c, x], 1))


def test_what_is_no_neuron_has_no_gate():
    torch.manual_seed(0)
    model = Mixed().double()
    graph, found = scored(model, VECTOR, kind="gate-flow")
    wanted = torch.zeros(5, dtype=torch.float64)
    for x, y in pairs(VECTOR):
        c = torch.ones(5, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x, c), y), c, create_graph=True)
        wanted += torch.autograd.grad((slope * slope.detach()).sum(), c)[0]
    torch.testing.assert_close(found[graph.layer("relu").classes], wanted, rtol=1e-9, atol=1e-14)
    assert found[0] == 0


def test_published_flows_are_other_flows_and_sensitivity_is_the_same():
    model = build(PlainNet)
    for kind, changes in (("sensitivity", False), ("weight-flow", True), ("gate-flow", True)):
        (_, here), (_, published) = (scored(model, kind=kind, as_published=p) for p in (False, True))
        assert torch.allclose(here, published) is not changes


def test_a_model_of_bare_parameters_has_all_of_them_as_weights():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(*s, dtype=torch.float64)) for s in ((6, 5), (5, 3)))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.a) @ self.b

    torch.manual_seed(0)
    model = Bare()
    (_, here), (_, published) = (scored(model, VECTOR, kind="weight-flow", as_published=p) for p in (False, True))
    assert torch.equal(here, published) and bool(here.any())
