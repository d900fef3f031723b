"""DemP agrees with Algorithm 1, step by step; and what its config promises."""

import copy
import math

import pytest
import torch
from demp_reference import Algorithm1, Anatomy, Kin, Made, Settings
from torch import Tensor, nn

import demp
from demp.errors import UsageError
from demp.methods.demp import DemonPruning
from demp.methods.demp_config import DemPConfig
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples, kill, loss_of, quiet_demp, train
from thinning import covering, mostly_slow

RESIDUAL = Anatomy(
    kin=(
        Kin(("stem_act", "act2"), 6, (
            ("stem.weight", 0), ("stem_norm.weight", 0), ("stem_norm.bias", 0), ("conv1.weight", 1),
            ("conv2.weight", 0), ("norm2.weight", 0), ("norm2.bias", 0), ("head.weight", 1),
        )),
        Kin(("act1",), 8, (("conv1.weight", 0), ("norm1.weight", 0), ("norm1.bias", 0), ("conv2.weight", 1))),
    ),
    gammas=("stem_norm.weight", "norm1.weight", "norm2.weight"),
    made=(
        Made("conv2.weight", "norm2.bias"), Made("norm2.weight", "norm2.bias"), Made("norm2.bias", "norm2.bias"),
        Made("stem.weight", "stem_norm.bias"), Made("stem_norm.weight", "stem_norm.bias"),
        Made("stem_norm.bias", "stem_norm.bias"),
        Made("conv1.weight", "norm1.bias"), Made("norm1.weight", "norm1.bias"), Made("norm1.bias", "norm1.bias"),
    ),
    others=("head.weight", "head.bias"),
)  # fmt: skip
PER_BLOCK = Anatomy(
    kin=(
        Kin(("stem_act",), 6, (
            ("stem.weight", 0), ("stem_norm.weight", 0), ("stem_norm.bias", 0), ("conv1.weight", 1),
        )),
        Kin(("act2",), 6, (("conv2.weight", 0), ("norm2.weight", 0), ("norm2.bias", 0), ("head.weight", 1))),
        *RESIDUAL.kin[1:],
    ),
    gammas=RESIDUAL.gammas,
    made=RESIDUAL.made,
    others=RESIDUAL.others,
)  # fmt: skip
MLP = Anatomy(
    kin=(
        Kin(("act1",), 12, (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1))),
        Kin(("act2",), 10, (("fc2.weight", 0), ("fc2.bias", 0), ("head.weight", 1))),
    ),
    gammas=("fc1.weight", "fc2.weight"),
    made=(
        Made("fc1.weight", "fc1.bias"), Made("fc1.bias", "fc1.bias"),
        Made("fc2.weight", "fc2.bias"), Made("fc2.bias", "fc2.bias"),
    ),
    others=("head.weight", "head.bias"),
)  # fmt: skip
PLAIN = Anatomy(
    kin=(
        Kin(("act1",), 6, (("conv1.weight", 0), ("norm1.weight", 0), ("norm1.bias", 0), ("conv2.weight", 1))),
        Kin(("act2",), 5, (("conv2.weight", 0), ("conv2.bias", 0), ("norm2.weight", 0), ("norm2.bias", 0)),
            (("fc.weight", 1, 4),)),
        Kin(("act3",), 7, (("fc.weight", 0), ("fc.bias", 0), ("head.weight", 1))),
    ),
    gammas=("norm1.weight", "norm2.weight"),
    made=(
        Made("conv1.weight", "norm1.bias"), Made("norm1.weight", "norm1.bias"), Made("norm1.bias", "norm1.bias"),
        Made("conv2.weight", "norm2.bias"), Made("conv2.bias", "norm2.bias"), Made("norm2.weight", "norm2.bias"),
        Made("norm2.bias", "norm2.bias"), Made("fc.weight", "fc.bias"), Made("fc.bias", "fc.bias"),
    ),
    others=("head.weight", "head.bias"),
)  # fmt: skip
ANATOMY = {ResidualNet: RESIDUAL, Mlp: MLP, PlainNet: PLAIN}


def shape_of(kind: type[nn.Module]) -> tuple[int, ...]:
    return VECTOR if kind is Mlp else IMAGE


def kept_by_layer(pruner: demp.Pruner) -> dict[str, list[int]]:
    return {layer.name: sorted(pruner.state.kept(layer.classes).tolist()) for layer in pruner.graph.layers}


def run_both(kind: type[nn.Module], settings: Settings, **options) -> tuple[demp.Pruner, Algorithm1]:
    """Train a network with demp and its twin by the book, comparing after every step."""
    shape = shape_of(kind)

    def death_batches(seed: int) -> list[Tensor]:
        return [examples(shape, n=4, seed=7919 * seed + i) for i in range(2)]

    model = build(kind, seed=1)
    anatomy = PER_BLOCK if options.get("joins", False) else ANATOMY[kind]
    twin = Algorithm1(copy.deepcopy(model), anatomy, settings, death_batches)
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(shape),), total_steps=settings.total_steps, seed=settings.seed,
        period=settings.tau, peak_strength=settings.peak_lambda, peak_noise_std=settings.peak_sigma,
        batches=death_batches, penalty=settings.penalty, noise_on=settings.noise, **options,
    )  # fmt: skip
    for step in range(settings.total_steps):
        (loss,) = train(model, optimizer, shape, range(step, step + 1))
        expected = twin.step(lambda m, step=step: loss_of(m, step, shape))
        assert loss == pytest.approx(expected, abs=1e-8, rel=0)
        kept = kept_by_layer(pruner)
        for kin, alive in zip(twin.anatomy.kin, twin.alive, strict=True):
            assert all(kept[layer] == alive.nonzero().flatten().tolist() for layer in kin.layers)
    expected = reordered(model, twin)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-7)
    return pruner, twin


def reordered(model: nn.Module, twin: Algorithm1) -> dict[str, torch.Tensor]:
    """The twin's parameters at the indices that stayed, in the order in which they lie."""
    record = demp.surgery.record_of(model)
    found = dict(twin.w)
    for (name, axis), kept in (record.kept if record is not None else {}).items():
        if name in found:
            found[name] = found[name].index_select(axis, kept)
    return found


RUNS = {
    "residual-adam": (ResidualNet, Settings(
        total_steps=80, tau=8, peak_lambda=0.3, peak_sigma=0.05, optimizer="adam", lr=0.03)),
    "residual-sgd": (ResidualNet, Settings(
        total_steps=80, tau=8, peak_lambda=0.1, peak_sigma=0.05, optimizer="sgd", lr=0.05, seed=3)),
    "mlp-adam": (Mlp, Settings(total_steps=80, tau=8, peak_lambda=0.05, peak_sigma=0.05, optimizer="adam", lr=0.02)),
    "mlp-sgd": (Mlp, Settings(total_steps=80, tau=8, peak_lambda=0.02, peak_sigma=0.05, optimizer="sgd", lr=0.05)),
    "flatten-adam-l2": (PlainNet, Settings(
        total_steps=60, tau=6, peak_lambda=0.3, peak_sigma=0.04, optimizer="adam", lr=0.02, penalty="l2")),
    "residual-adam-symmetric": (ResidualNet, Settings(
        total_steps=60, tau=6, peak_lambda=0.2, peak_sigma=0.04, optimizer="adam", lr=0.03, noise="all")),
    "mlp-adam-linear-rise": (Mlp, Settings(
        total_steps=40, tau=5, peak_lambda=0.05, peak_sigma=0.05, optimizer="adam", lr=0.02, linear_rise=True)),
}  # fmt: skip


@pytest.mark.parametrize(("optimizer", "strength", "lr"), [("adam", 0.3, 0.03), ("sgd", 0.15, 0.1)])
def test_demp_with_joins_is_algorithm_1_with_a_live_set_per_block(optimizer: str, strength: float, lr: float):
    """Without noise: its deviates follow the order in which channels lie."""
    settings = Settings(total_steps=80, tau=8, peak_lambda=strength, peak_sigma=0.0, optimizer=optimizer, lr=lr)
    pruner, _ = run_both(ResidualNet, settings, joins=True)
    stem, block = (pruner.state.removed[pruner.graph.layer(name).classes] for name in ("stem_act", "act2"))
    assert bool((stem & ~block).any() and (~stem & block).any()) == (optimizer == "sgd")
    assert sum(report.happened for report in pruner.history) >= 2


QUICK_RUNS = ("residual-sgd", "flatten-adam-l2", "mlp-adam-linear-rise")
"""Both optimizers, all networks, both penalties, both schedules."""


@pytest.mark.parametrize("name", mostly_slow(RUNS, QUICK_RUNS))
def test_demp_is_algorithm_1_step_by_step(name: str):
    """Channels of a stream die together."""
    kind, settings = RUNS[name]
    options = {"joins": False} | ({"schedule": "one-cycle-linear"} if settings.linear_rise else {})
    pruner, twin = run_both(kind, settings, **options)
    assert sum(any(removed) for _, removed in twin.cuts) >= 2
    assert [(report.step, report.removed > 0) for report in pruner.history] == [(t, any(r)) for t, r in twin.cuts]


# The clock ----------------------------------------------------------------------------------------------


def due(total_steps: int, **options) -> list[int]:
    method = DemonPruning(DemPConfig(**options), total_steps)
    return [step for step in range(1, total_steps + 1) if method.is_due(step)]


def test_the_default_period_is_a_twentieth_of_the_run():
    assert due(100) == list(range(5, 101, 5))
    assert due(10) == list(range(1, 11))
    assert DemonPruning(DemPConfig(), 97_656).period == 4883


def test_periods_of_ones_own_later_starts_and_the_very_first_step():
    assert due(20, period=6) == [6, 12, 18]
    assert due(20, period=6, prune_after=12) == [12, 18]
    assert due(20, period=6, prune_at_start=True) == [1, 6, 12, 18]
    assert due(20, period=6, prune_at_start=True, prune_after=7) == [12, 18]
    assert due(20, dynamic=False, prune_at_start=True) == []


def test_strength_and_noise_follow_the_stock_one_cycle_over_the_span():
    method = DemonPruning(DemPConfig(peak_strength=0.5, peak_noise_std=0.2, span=0.5), 200)
    assert [method.strength(t) for t in (0, 15, 30, 100, 199)] == pytest.approx([0.02, 0.26, 0.5, 2e-6, 2e-6])
    assert [method.noise_std(t) for t in (0, 15, 30, 100, 199)] == pytest.approx([8e-3, 0.104, 0.2, 8e-7, 8e-7])
    penalty, noise = method.penalty(30), method.after_step(30)
    assert penalty is not None
    assert noise is not None
    assert (penalty.kind, penalty.strength, penalty.on) == ("lasso", 0.5, "scales")
    assert (noise.std, noise.times_lr) == (0.2, False)


def test_negligible_values_are_zero():
    method = DemonPruning(DemPConfig(peak_strength=1e-7, peak_noise_std=1e-7), 100)
    assert (method.strength(99), method.noise_std(99)) == (0.0, 0.0)
    assert method.strength(26) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"peak_strength": math.nan}, {"peak_strength": -1.0}, {"peak_strength": math.inf}, {"peak_noise_std": math.nan},
        {"peak_noise_std": -1e-5}, {"penalty": "ridge"}, {"penalty_on": "shifts"}, {"penalty_in": "weights"},
        {"schedule": "cosine"}, {"noise_schedule": "cosine"}, {"span": 0.0}, {"span": 2.0}, {"peak_at": 1.0},
        {"noise_on": "dead"}, {"live_mask": "gradient"}, {"criterion": "zero"}, {"eps": -0.1}, {"collect": "hooks"},
        {"period": 0}, {"window_steps": 0}, {"prune_after": -1}, {"target_neuron_sparsity": 0.0},
        {"target_neuron_sparsity": 1.0}, {"target_growth": 0.5}, {"target_growth": math.nan}, {"floor": 0},
        {"multiple": 0}, {"include": "act*"}, {"exclude": "act*"},
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(options: dict):
    (name,) = options
    with pytest.raises(UsageError, match=name):
        DemPConfig(**options)


# A target -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "target"), covering((PlainNet, ResidualNet), (0.1, 0.4)))
def test_a_target_is_reached_and_not_exceeded(kind: type[nn.Module], target: float):
    model = build(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    pruner = quiet_demp(
        model, optimizer, total_steps=80, period=8, peak_strength=0.3, peak_noise_std=0.05, target_growth=1.5,
        target_neuron_sparsity=target,
    )  # fmt: skip
    train(model, optimizer, IMAGE, range(80))
    pruner.finish()
    total = pruner.graph.dense.neurons
    wanted = round(target * total)
    removed = total - pruner.state.neurons
    assert removed <= wanted
    assert removed >= wanted - (1 if kind is ResidualNet else 0)  # a stream neuron counts in each of its layers
    assert pruner.metrics()["demp/strength"] == 0.0


def test_the_strength_grows_past_the_peak_while_the_target_is_missed():
    model = build(PlainNet)
    model.norm1.bias.data[:] = model.norm2.bias.data[:] = model.fc.bias.data[:] = 50.0  # nobody dies
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pruner = quiet_demp(
        model, optimizer, total_steps=40, period=4, schedule="constant", peak_strength=0.01, peak_at=0.5, span=1.0,
        target_neuron_sparsity=0.5, target_growth=2.0,
    )  # fmt: skip
    strengths = []
    for step in range(32):
        train(model, optimizer, IMAGE, range(step, step + 1))
        strengths.append(pruner.metrics()["demp/strength"])
    assert strengths[3::4] == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.02, 0.04, 0.08, 0.16])


def test_neurons_that_may_not_go_do_not_use_up_the_target():
    model = build(PlainNet)
    kill(model.norm1, [0, 1, 2, 3])
    kill(model.norm2, [0, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = quiet_demp(model, optimizer, period=2, target_neuron_sparsity=0.1, exclude=("act1",))
    train(model, optimizer, IMAGE, range(2))
    assert pruner.history[-1].removed == 2
    assert pruner.metrics()["demp/strength"] == 0.0
    assert pruner.metrics()["prune/neuron_sparsity"] == pytest.approx(2 / 18)


def test_the_controllers_state_survives():
    method = DemonPruning(DemPConfig(target_neuron_sparsity=0.5), 100)
    method._target.growth, method._target.met = 3.5, True
    other = DemonPruning(DemPConfig(target_neuron_sparsity=0.5), 100)
    other.load_state_dict(method.state_dict())
    revival = {"over": False, "quiet": 0, "dead": None}
    wanted = {"growth": 3.5, "target_met": True, "advised": False, "revival": revival, "course": None}
    assert other.state_dict() == method.state_dict() == wanted
    assert (other.strength(30), other.noise_std(30)) == (0.0, 0.0)
