"""SNAP and CroPit-S against the book: rounds, collapse, target, refusals, resuming."""

import copy
import io
from typing import Any

import pytest
import torch
from scored_reference import WIDTHS, Literal, literal_rounds, shape_of
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.importance.gates import Scoring, scores
from demp.methods import rounds
from demp.methods.cropit_s import CropItSConfig
from demp.methods.scored import ScoredConfig
from demp.train.models import resnet18, resnet50
from runs import IMAGE, Mlp, PlainNet, ResidualNet, all_alive, batch_at, build, sgd, train
from thinning import covering, mostly_slow


def scoring_batches(shape: tuple[int, ...]) -> Any:
    return lambda seed: [batch_at(500 + seed + i, shape) for i in range(3)]


def attached(name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options) -> demp.Pruner:
    shape = shape_of(type(model))
    defaults = {
        "example_inputs": (batch_at(0, shape)[0],), "batches": scoring_batches(shape), "loss_fn": F.cross_entropy,
        "total_steps": 20,
    }  # fmt: skip
    return demp.methods.create(name, model, optimizer or sgd(model), **{**defaults, **options})


def kept(pruner: demp.Pruner) -> dict[str, list[int]]:
    return {layer.name: sorted(pruner.state.kept(layer.classes).tolist()) for layer in pruner.graph.layers}


# The list of rounds -------------------------------------------------------------------------------------


def test_the_list_of_the_originals():
    assert rounds.targets(0.8) == pytest.approx([0.5, 0.65, 0.725, 0.7625, 0.78125, 0.790625, 0.8])
    assert rounds.targets(0.9, start=0.3, rounds=1) == pytest.approx([0.3, 0.6, 0.9])
    for rho in (0.1, 0.3, 0.5, 0.51, 0.6, 0.85, 0.99):
        assert rounds.targets(rho) == pytest.approx(literal_rounds(rho))


def test_a_target_below_the_start_is_never_overshot():
    assert rounds.targets(0.3) == (0.3,)
    assert rounds.targets(0.5) == (0.5,)
    assert rounds.targets(0.9, rounds=0) == (0.9,)


# By the book --------------------------------------------------------------------------------------------

METHODS = {
    "snap": ("snap", {}, "sensitivity"),
    "cropit-s": ("cropit-s", {}, "weight-flow"),
    "cropit-s gates only": ("cropit-s", {"score": "gate-flow"}, "gate-flow"),
    "cropit-s, all parameters": ("cropit-s", {"as_published": False}, "weight-flow"),
    "cropit-s, neurons' gates": ("cropit-s", {"score": "gate-flow", "as_published": False}, "gate-flow"),
}


@pytest.mark.parametrize(
    ("network", "act", "name", "target"),
    covering((PlainNet, ResidualNet, Mlp), (nn.ReLU, nn.GELU), METHODS, (0.3, 0.7)),
)
def test_neurons_go_as_the_book_says(network: type[nn.Module], act: type[nn.Module], name: str, target: float):
    method, options, kind = METHODS[name]
    model = build(network, seed=4, act=act)
    shape = shape_of(network)
    twin = Literal(model, WIDTHS[network], as_published=options.get("as_published", True))
    pruner = attached(method, model, target_neuron_sparsity=target, **options)
    twin.prune(kind, scoring_batches(shape)(0), literal_rounds(target))
    assert kept(pruner) == twin.kept()
    x, _ = batch_at(3, shape)
    torch.testing.assert_close(model(x), twin.model(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_gates_before_the_norm_as_in_the_original_repository(name: str):
    method, options, kind = METHODS[name]
    model = build(PlainNet, seed=4, act=nn.GELU)
    published = options.get("as_published", True)
    twin = Literal(model, WIDTHS[PlainNet], gate="producer", as_published=published)
    plain = Literal(model, WIDTHS[PlainNet], as_published=published)
    pruner = attached(method, model, target_neuron_sparsity=0.6, gate="producer", **options)
    for one in (twin, plain):
        one.prune(kind, scoring_batches(IMAGE)(0), literal_rounds(0.6))
    assert kept(pruner) == twin.kept() != plain.kept()


def test_every_round_is_a_cut_with_a_report_and_scores_what_is_left():
    model = all_alive(PlainNet)
    pruner = attached("snap", model, target_neuron_sparsity=0.8)
    total = pruner.graph.dense.neurons
    sizes = [total - report.neurons_after for report in pruner.history]
    assert sizes == [round(k * total) for k in rounds.targets(0.8)] == [9, 12, 13, 14, 14, 14, 14]
    assert {report.step for report in pruner.history} == {0}
    assert pruner.history[0].notes == ("round 1 of 7, to neuron sparsity 0.5",)
    assert [report.judged["batches"] for report in pruner.history] == [3] * 7
    assert pruner.history[0].judged["forwards"] == 3 * 16 * 3
    at_once = attached("snap", all_alive(PlainNet), target_neuron_sparsity=0.8, rounds=0)
    assert [report.removed for report in at_once.history] == [14]
    assert kept(at_once) != kept(pruner)


@pytest.mark.parametrize("name", METHODS)
def test_afterwards_the_run_is_a_plain_one(name: str):
    method, options, _ = METHODS[name]
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = attached(method, model, optimizer, total_steps=8, **options)
    twin = copy.deepcopy(model)
    cuts = len(pruner.history)
    plain = torch.optim.Adam(twin.parameters(), lr=0.01)
    assert train(model, optimizer, IMAGE, range(8)) == train(twin, plain, IMAGE, range(8))
    assert len(pruner.history) == cuts
    assert not pruner.finish().happened


def test_batch_statistics_change_the_ranking():
    plain, own = (
        attached("snap", build(PlainNet), target_neuron_sparsity=0.5, batch_statistics=flag) for flag in (False, True)
    )
    assert kept(plain) != kept(own)


# The zero-initialised last scale ------------------------------------------------------------------------


def pruned(name: str, build_model: Any, target: float, zero: bool, **options) -> tuple[demp.Pruner, float]:
    """With it: which share of what is inside branches is gone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(zero)
    data = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 16, 16, generator=data), torch.randint(10, (8,), generator=data)
    pruner = demp.methods.create(
        name, model, sgd(model), example_inputs=(x[:2],), total_steps=10, batches=[(x, y)], loss_fn=F.cross_entropy,
        target_neuron_sparsity=target, **options,
    )  # fmt: skip
    return pruner, float(pruner.state.removed[inside(pruner.graph)].double().mean())


def inside(graph: demp.NeuronGraph) -> Tensor:
    """Neurons inside residual branches: none of a stem's or of a block's output."""
    inner = ("act1", "act2") if any(layer.name.endswith("act3") for layer in graph.layers) else ("act1",)
    return torch.cat([layer.classes for layer in graph.layers if layer.name.endswith(inner)])


def narrow50(zero: bool) -> nn.Module:
    return resnet50(10, width=4 / 64, cifar_stem=True, zero_init_last_scale=zero)


@pytest.mark.parametrize(
    ("name", "options"), [("snap", {}), pytest.param("cropit-s", {"score": "gate-flow"}, marks=pytest.mark.slow)]
)
def test_a_zero_last_scale_empties_every_branch_first(name: str, options: dict):
    """Batch statistics: no neuron is dead, so that only those inside branches score 0."""
    graph = demp.trace(narrow50(True), (torch.randn(2, 3, 8, 8),))
    inner, layers = inside(graph), 32
    target = (len(inner) - layers) / graph.dense.neurons  # all of them but one of each layer
    options = {"batch_statistics": True, "rounds": 1, **options}
    pruner, share = pruned(name, narrow50, target, True, **options)
    assert share == (len(inner) - layers) / len(inner)
    assert graph.dense.neurons - graph.at(pruner.state.removed).neurons == len(inner) - layers  # and nobody else
    assert all(widths == 1 for widths in widths_inside(pruner))
    fair, share = pruned(name, narrow50, target, False, **options)
    assert share < 0.6
    assert max(widths_inside(fair)) > 1


def widths_inside(pruner: demp.Pruner) -> list[int]:
    return [
        int((~pruner.state.removed[layer.classes]).sum())
        for layer in pruner.graph.layers
        if layer.name.endswith(("act1", "act2"))
    ]


@pytest.mark.slow
def test_the_original_score_of_cropit_sees_the_last_scales_and_still_puts_branches_lowest():
    model, data = narrow50(True), torch.Generator().manual_seed(1)
    pairs = [(torch.randn(8, 3, 16, 16, generator=data), torch.randint(10, (8,), generator=data))]
    graph = demp.trace(model, (pairs[0][0],))
    found = {
        kind: scores(model, graph.dense, Scoring(kind=kind, batch_statistics=True), pairs, F.cross_entropy).values[
            inside(graph)
        ]
        for kind in ("sensitivity", "gate-flow", "weight-flow")
    }
    assert not bool(found["sensitivity"].any())
    assert not bool(found["gate-flow"].any())
    assert bool((found["weight-flow"] != 0).all())
    share = pruned(
        "cropit-s", narrow50, len(inside(graph)) / graph.dense.neurons, True, batch_statistics=True, rounds=0
    )[1]
    assert share > 0.8
    target = len(inside(graph)) / graph.dense.neurons
    assert pruned("cropit-s", narrow50, target, False, batch_statistics=True, rounds=1)[1] < 0.6


def test_the_fair_setting_is_the_default():
    for builder in (resnet18, resnet50):
        model = builder(10, width=4 / 64)
        assert all(bool((m.weight == 1).all()) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


# Targets, refusals --------------------------------------------------------------------------------------


def test_a_target_that_the_floor_forbids_stops_there_and_says_so():
    pruner = attached("snap", build(PlainNet), target_neuron_sparsity=0.95, floor=3)
    assert [len(k) for k in kept(pruner).values()] == [3, 3, 3]
    assert pruner.metrics()["prune/neuron_sparsity"] == 0.5
    assert "stopped at neuron sparsity 0.500 of 0.95" in pruner.history[-1].notes[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_neuron_sparsity", 0.0), ("target_neuron_sparsity", 1.0), ("target_neuron_sparsity", float("nan")),
        ("start_sparsity", 0.0), ("start_sparsity", 1.0), ("scoring_batches", 0), ("rounds", -1), ("gate", "input"),
        ("score", "flow"), ("floor", 0),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: Any):
    with pytest.raises(UsageError, match=name):
        CropItSConfig(**{name: value})
    if name != "score":
        with pytest.raises(UsageError, match=name):
            ScoredConfig(**{name: value})


def test_without_batches_or_a_loss_there_is_no_score():
    for missing in ("batches", "loss_fn"):
        with pytest.raises(UsageError, match=r"pass loss_fn=.* and batches="):
            attached("snap", build(PlainNet), **{missing: None})
    with pytest.raises(UsageError, match="must be a pair"):
        attached("snap", build(PlainNet), batches=[batch_at(0, IMAGE)[0]])
    with pytest.raises(UsageError, match="no batch to score on"):
        attached("snap", build(PlainNet), batches=lambda: [])


class Detached(PlainNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_a_model_without_gradients_is_refused():
    model = build(Detached)
    with pytest.raises(UsageError, match="does not depend on any gate"):
        demp.methods.create(
            "snap", model, sgd(model), example_inputs=(batch_at(0, IMAGE)[0],), total_steps=5,
            batches=[batch_at(0, IMAGE)], loss_fn=F.cross_entropy,
        )  # fmt: skip


# Resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(METHODS, quick=("snap", "cropit-s")))
def test_an_interrupted_run_continues_to_the_bit(name: str):
    method, options, _ = METHODS[name]

    def parts(**more):
        model = build(ResidualNet, seed=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        settings = {"target_neuron_sparsity": 0.6, "total_steps": 10, **options, **more}
        return model, optimizer, attached(method, model, optimizer, **settings)

    model, optimizer, pruner = parts()
    train(model, optimizer, IMAGE, range(4))
    buffer = io.BytesIO()
    torch.save([pruner.state_dict(), model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    train(model, optimizer, IMAGE, range(4, 10))
    again, again_optimizer, resumed = parts(resume=True)
    assert not bool(resumed.state.removed.any())
    for part, state in zip((resumed, again, again_optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(again, again_optimizer, IMAGE, range(4, 10))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not resumed.finish().happened
