"""Penalties: gradient against autograd, what the optimizer sees, mixed precision, accumulation, clipping."""

import copy
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.regularization.penalties import Penalty, add_gradient, value
from demp.regularization.schedules import OneCycle
from demp.regularization.targets import penalised
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, batch_at, build, examples, loss_of, same, train
from thinning import covering

KINDS = ("lasso", "l2")


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def scales(model: nn.Module) -> list[nn.Parameter]:
    return [module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def without_noise_or_cuts(model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    shape = VECTOR if isinstance(model, Mlp) else IMAGE
    inputs = examples(shape, dtype=next(model.parameters()).dtype)
    settings = {"total_steps": 20, "peak_strength": 0.02, "peak_noise_std": 0.0, "dynamic": False, **options}
    return demp.DemP(model, optimizer, example_inputs=(inputs,), **settings)


# The gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(strength=st.just(0.0) | st.floats(1e-12, 10), seed=st.integers(0, 1000))
def test_the_gradient_is_that_of_the_value(kind: str, strength: float, seed: int):
    ours, theirs = parameters((5,), (3, 4), seed=seed), parameters((5,), (3, 4), seed=seed)
    add_gradient(ours, Penalty(kind, strength))
    value(theirs, Penalty(kind, strength)).backward()
    for mine, other in zip(ours, theirs, strict=True):
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        found = torch.zeros_like(mine) if mine.grad is None else mine.grad
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_the_value_is_a_sum_not_a_mean():
    gamma = [nn.Parameter(torch.tensor([3.0, -4.0])), nn.Parameter(torch.tensor([1.0]))]
    assert value(gamma, Penalty("lasso", 0.5)).item() == pytest.approx(0.5 * 8.0)
    assert value(gamma, Penalty("l2", 0.5)).item() == pytest.approx(0.5 * 0.5 * 26.0)
    assert value([], Penalty("lasso", 0.5)).item() == 0.0


def test_lasso_pulls_nowhere_at_zero():
    gamma = nn.Parameter(torch.tensor([0.0, 2.0, -2.0]))
    add_gradient([gamma], Penalty("lasso", 0.25))
    assert gamma.grad is not None
    assert gamma.grad.tolist() == [0.0, 0.25, -0.25]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)])
def test_the_loss_scale_multiplies_what_is_added(kind: str, scale: float | Tensor):
    plain, scaled = parameters((6,)), parameters((6,))
    add_gradient(plain, Penalty(kind, 0.3))
    add_gradient(scaled, Penalty(kind, 0.3), scale)
    assert plain[0].grad is not None
    assert scaled[0].grad is not None
    assert torch.equal(scaled[0].grad, 1024.0 * plain[0].grad)


def test_it_is_added_to_what_is_there_and_a_missing_gradient_counts_as_zero():
    with_grad, without = parameters((4,), (4,))
    with_grad.grad = torch.ones_like(with_grad)
    holder = with_grad.grad
    add_gradient([with_grad, without], Penalty("lasso", 0.1))
    assert with_grad.grad is holder
    assert torch.equal(with_grad.grad, 1 + 0.1 * with_grad.detach().sign())
    assert without.grad is not None
    assert torch.equal(without.grad, 0.1 * without.detach().sign())


def test_frozen_parameters_get_nothing():
    free, frozen = parameters((4,), (4,))
    frozen.requires_grad_(False)
    add_gradient([free, frozen], Penalty("l2", 0.1))
    assert free.grad is not None
    assert frozen.grad is None


def test_strength_zero_leaves_gradients_alone():
    (gamma,) = parameters((4,))
    add_gradient([gamma], Penalty("lasso", 0.0))
    assert gamma.grad is None


@pytest.mark.parametrize(
    "arguments", [("lasso", math.nan), ("lasso", -1.0), ("lasso", math.inf), ("ridge", 1.0), ("l2", 1.0, "shifts")]
)
def test_nonsense_is_refused(arguments: tuple):
    with pytest.raises(UsageError):
        Penalty(*arguments)


# On which parameters ------------------------------------------------------------------------------------


def names_of(model: nn.Module, chosen: list[nn.Parameter]) -> list[str]:
    ids = {id(p) for p in chosen}
    return [name for name, p in model.named_parameters() if id(p) in ids]


class OutputNorm(nn.Module):
    """The second norm feeds the output: its neurons cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 3, 1)
        self.norm2 = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


def test_scales_are_those_that_feed_removable_neurons():
    model = OutputNorm()
    graph = demp.trace(model, (torch.randn(2, *IMAGE),))
    assert names_of(model, penalised(model, graph, "scales")) == ["norm1.weight"]
    assert names_of(model, penalised(model, graph, "all-scales")) == ["norm1.weight", "norm2.weight"]
    everything = [name for name, _ in model.named_parameters()]
    assert names_of(model, penalised(model, graph, "parameters")) == everything


def test_scales_of_a_residual_stream_count():
    model = build(ResidualNet)
    graph = demp.trace(model, (examples(IMAGE),))
    chosen = names_of(model, penalised(model, graph, "scales"))
    assert chosen == ["stem_norm.weight", "norm1.weight", "norm2.weight"]


def test_frozen_scales_are_not_chosen():
    model = build(PlainNet)
    model.norm1.weight.requires_grad_(False)
    graph = demp.trace(model, (examples(IMAGE),))
    assert names_of(model, penalised(model, graph, "scales")) == ["norm2.weight"]


@pytest.mark.parametrize("on", ["scales", "all-scales"])
def test_a_model_without_norms_is_penalised_on_its_weights_with_one_warning(on: str, caplog: pytest.LogCaptureFixture):
    model = build(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with caplog.at_level(logging.WARNING, logger="demp"):
        pruner = without_noise_or_cuts(model, optimizer, penalty_on=on)
        before = copy.deepcopy(model)
        train(model, optimizer, VECTOR, range(3))
        pruner.finish()
    messages = [r.message for r in caplog.records if not r.message.startswith("nothing was removed by step 3 of 20")]
    assert messages == [
        "no normalisation feeds the removable neurons of Mlp: the penalty acts on the weights that produce them instead"
    ]
    expected = torch.optim.SGD(before.parameters(), lr=0.01)
    for step in range(3):
        expected.zero_grad()
        strength = 0.02 * OneCycle(span=0.87)(step, 20)
        weights = [before.fc1.weight, before.fc2.weight]
        (loss_of(before, step, VECTOR) + value(weights, Penalty("lasso", strength))).backward()
        expected.step()
    for mine, other in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


# What the optimizer sees --------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize(("optimizer", "kind", "on"), covering(OPTIMIZERS, KINDS, ("scales", "parameters"), together=2))
def test_it_equals_training_with_the_penalty_in_the_loss(optimizer: str, kind: str, on: str):
    ours = build(PlainNet)
    theirs = copy.deepcopy(ours)
    our_optimizer, their_optimizer = (OPTIMIZERS[optimizer](m.parameters()) for m in (ours, theirs))
    without_noise_or_cuts(ours, our_optimizer, penalty=kind, penalty_on=on)
    chosen = list(theirs.parameters()) if on == "parameters" else scales(theirs)
    for step in range(12):
        train(ours, our_optimizer, IMAGE, range(step, step + 1))
        their_optimizer.zero_grad()
        strength = 0.02 * OneCycle(span=0.87)(step, 20)
        penalty = sum((p.abs().sum() if kind == "lasso" else 0.5 * p.square().sum()) for p in chosen)
        (loss_of(theirs, step, IMAGE) + strength * penalty).backward()
        their_optimizer.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_adams_moments_see_the_penalty():
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999))
    without_noise_or_cuts(model, optimizer, schedule="constant")
    gamma = model.norm1.weight
    before = gamma.detach().clone()
    optimizer.zero_grad()
    loss_of(model, 0, IMAGE).backward()
    assert gamma.grad is not None
    data = gamma.grad.clone()
    optimizer.step()
    full = data + 0.02 * before.sign()
    torch.testing.assert_close(optimizer.state[gamma]["exp_avg"], 0.1 * full)
    torch.testing.assert_close(optimizer.state[gamma]["exp_avg_sq"], 0.001 * full.square())


def test_penalty_in_loss_is_the_users_to_add():
    ours = build(PlainNet)
    theirs = copy.deepcopy(ours)
    our_optimizer, their_optimizer = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (ours, theirs))
    pruner = without_noise_or_cuts(ours, our_optimizer, penalty_in="loss")
    without_noise_or_cuts(theirs, their_optimizer)
    for step in range(8):
        our_optimizer.zero_grad()
        (loss_of(ours, step, IMAGE) + pruner.penalty_loss()).backward()
        our_optimizer.step()
        train(theirs, their_optimizer, IMAGE, range(step, step + 1))
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty_in", ["gradient", "loss"])
def test_clipping_spares_the_penalty_unless_it_is_in_the_loss(penalty_in: str):
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner = without_noise_or_cuts(model, optimizer, schedule="constant", peak_strength=5.0, penalty_in=penalty_in)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = loss_of(model, 0, IMAGE)
    if penalty_in == "loss":
        loss = loss + pruner.penalty_loss()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    clipped = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    total = torch.cat([m.flatten() for m in moved.values()]).norm()
    if penalty_in == "loss":
        assert total.item() == pytest.approx(0.1, rel=1e-5)
        return
    for name, step in moved.items():
        extra = 5.0 * before[name].sign() if name in ("norm1.weight", "norm2.weight") else 0.0
        torch.testing.assert_close(step, clipped[name] + extra, rtol=1e-9, atol=1e-12)


def test_it_is_added_once_per_step_under_gradient_accumulation():
    ours = build(PlainNet)
    theirs = copy.deepcopy(ours)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (ours, theirs)]
    pruner = without_noise_or_cuts(ours, optimizers[0])
    for step in range(6):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            for part in range(3):
                (loss_of(model, 3 * step + part, IMAGE) / 3).backward()
        with torch.no_grad():
            for gamma in scales(theirs):
                assert gamma.grad is not None
                gamma.grad += 0.02 * OneCycle(span=0.87)(step, 20) * gamma.sign()
        for optimizer in optimizers:
            optimizer.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    assert pruner.step == 6


# Mixed precision ----------------------------------------------------------------------------------------


def scaled_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, steps: range, clip: float | None
) -> None:
    for step in steps:
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step, IMAGE)).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize(("fused", "kind", "clip"), covering((False, True), ("sgd", "adam"), (None, 0.05), together=2))
def test_a_grad_scaler_changes_nothing(fused: bool, kind: str, clip: float | None):
    results = []
    for enabled in (False, True):
        model = build(PlainNet, dtype=torch.float32)
        options = {"lr": 0.05, "momentum": 0.9} if kind == "sgd" else {"lr": 0.01}
        make = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
        optimizer = make(model.parameters(), fused=fused, **options)
        pruner = without_noise_or_cuts(model, optimizer, peak_noise_std=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled)
        scaled_loop(model, optimizer, scaler, range(8), clip)
        assert pruner.step == 8
        results.append(model)
    for plain, scaled in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_for_overflow_is_no_step(fused: bool):
    model = build(PlainNet, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    pruner = without_noise_or_cuts(model, optimizer, peak_noise_std=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    model.eval()  # forwards leave the running statistics alone
    before = copy.deepcopy(model)
    scaler.scale(loss_of(model, 0, IMAGE) * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same(model, before)
    assert pruner.step == 0
    scaled_loop(model, optimizer, scaler, range(1, 3), None)
    assert pruner.step == 2
    assert not same(model, before)


def test_the_example_data_has_a_signal():
    _, y = batch_at(0, IMAGE)
    assert len(y.unique()) == 3
