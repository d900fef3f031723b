"""What a pruner cuts, when it must wait, and what it says about it."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import demp
from demp.errors import CutError, UsageError
from runs import (
    IMAGE,
    ResidualNet,
    all_alive,
    batch_at,
    examples,
    hooks_on,
    kill,
    loss_of,
    quiet_demp,
    same,
    settled,
    sgd,
    train,
    widths,
    with_dead,
)  # fmt: skip

# Postponed ----------------------------------------------------------------------------------------------


def own_steps(pruner: demp.Pruner, steps: range, between: Callable[[], Any] = lambda: None) -> None:
    """Training with attach=False; ``between`` runs after the optimizer's step and before the pruner's."""
    (optimizer,) = pruner.optimizers
    for step in steps:
        optimizer.zero_grad()
        loss_of(pruner.model, step, IMAGE).backward()
        pruner.before_step()
        optimizer.step()
        between()
        pruner.after_step()


@pytest.mark.parametrize("mode", ["probe", "window"])
def test_a_cut_waits_for_a_pending_backward(mode: str, caplog: pytest.LogCaptureFixture):
    model = with_dead(act1=[0])
    batches = [examples(IMAGE)] if mode == "probe" else None
    pruner = quiet_demp(model, sgd(model), total_steps=100, period=5, batches=batches, attach=False)
    own_steps(pruner, range(4))
    pending = []
    with caplog.at_level(logging.INFO, logger="demp"):
        own_steps(pruner, range(4, 6), lambda: pending.append(model(examples(IMAGE)).sum()))
    assert pruner.history == []
    assert [r.message for r in caplog.records] == ["cut at step 5 postponed: a forward still waits for its backward"]
    pending.clear()
    own_steps(pruner, range(6, 7))
    assert [(r.step, r.removed) for r in pruner.history] == [(7, 1)]
    if mode == "window":
        assert pruner.history[0].judged["batches"] == 9  # seven steps and the two pending forwards
    own_steps(pruner, range(7, 20))  # the next windows fit the cut network
    assert [r.step for r in pruner.history] == [7, 10, 15, 20]


def test_three_postponements_in_a_row_are_a_warning(caplog: pytest.LogCaptureFixture):
    model = with_dead(act1=[0])
    pruner = quiet_demp(model, sgd(model, lr=1e-6), total_steps=100, period=5, attach=False)
    kept: list[Tensor] = []

    def keep() -> None:
        kept.append(model.act1(model.norm1(model.conv1(examples(IMAGE)))))  # its backward needs no weight that steps

    with caplog.at_level(logging.WARNING, logger="demp"):
        own_steps(pruner, range(6), keep)
        assert not caplog.records
        own_steps(pruner, range(6, 20), keep)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and pruner.history == []
    for text in ("the last 3 checks, up to step 7, were postponed", "ReluBackward0, computed with", "torch.no_grad()"):
        assert text in record.getMessage()
    kept.clear()
    own_steps(pruner, range(20, 21))
    assert [(r.step, r.removed) for r in pruner.history] == [(21, 1)]


@pytest.mark.parametrize("kept", ["every loss", "retained", "every output", "an early evaluation"])
def test_spent_forwards_that_are_kept_postpone_nothing(kept: str):
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=10, period=2)
    held: list[Any] = []
    for step in range(10):
        optimizer.zero_grad()
        x, y = batch_at(step, IMAGE)
        out = model(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward(retain_graph=kept == "retained")
        optimizer.step()
        held += {"every loss": [loss], "every output": [out]}.get(kept, [])
        if kept == "an early evaluation" and step == 0:
            held.append(model.eval()(examples(IMAGE)))
            model.train()
    assert [(r.step, r.removed) for r in pruner.history] == [(2, 1), (4, 0), (6, 0), (8, 0), (10, 0)]
    assert pruner.finish() is pruner.history[-1] and len(held) in (0, 1, 10)


def test_finish_cuts_and_says_which_forward_it_breaks(caplog: pytest.LogCaptureFixture):
    model = with_dead(act1=[0])
    pruner = quiet_demp(model, sgd(model))
    pending = model(examples(IMAGE)).sum()
    with caplog.at_level(logging.WARNING, logger="demp"):
        assert pruner.finish().removed == 1
    assert widths(model) == (5, 5, 7)
    assert "a tensor made by SumBackward0, computed with" in caplog.records[0].getMessage()
    assert "a backward through it fails after the last cut" in caplog.records[0].getMessage()
    with pytest.raises(RuntimeError):
        pending.backward()


def test_outputs_that_are_not_finite_prove_nothing():
    model = with_dead(act1=[0])
    optimizer = sgd(model, lr=0.0)
    pruner = quiet_demp(model, optimizer, on_error="raise")
    model.head.bias.data[0] = torch.nan
    with pytest.raises(CutError, match="not finite"):
        pruner.finish()
    assert widths(model) == (6, 5, 7)


# Own steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["positional", "keyword"])
def test_a_closure_gets_the_penalty_after_its_gradients(call: str):
    plain, closed = with_dead(act1=[0]), with_dead(act1=[0])
    mine, other = sgd(plain), sgd(closed)
    options = {"total_steps": 6, "period": 2, "peak_noise_std": 1e-3, "peak_strength": 1e-2}
    pruners = [quiet_demp(plain, mine, **options), quiet_demp(closed, other, **options)]
    train(plain, mine, IMAGE, range(6))
    for step in range(6):

        def closure(step: int = step) -> Tensor:
            other.zero_grad()
            loss = loss_of(closed, step, IMAGE)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(closed.parameters(), 1e9)
            return loss

        loss = other.step(closure) if call == "positional" else other.step(closure=closure)
        assert loss is not None
    assert same(plain, closed)
    assert [r.removed for r in pruners[0].history] == [r.removed for r in pruners[1].history] == [1, 0, 0]


def test_lbfgs_is_refused_before_anything_moves():
    model = with_dead(act1=[0])
    optimizer = torch.optim.LBFGS(model.parameters())
    pruner = quiet_demp(model, optimizer)
    before = copy.deepcopy(model.state_dict())

    def closure() -> float:
        raise AssertionError("must not be called")

    with pytest.raises(UsageError, match="attach=False and add pruner.penalty_loss"):
        optimizer.step(closure)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert pruner.step == 0


def test_several_optimizers_are_stepped_by_the_user():
    one, two = with_dead(act1=[0]), with_dead(act1=[0])
    whole = sgd(one)
    parts = [torch.optim.SGD(list(p), lr=0.01, momentum=0.9) for p in
             ([*two.conv1.parameters(), *two.norm1.parameters(), *two.conv2.parameters()],
              [*two.norm2.parameters(), *two.fc.parameters(), *two.head.parameters()])]  # fmt: skip
    with pytest.raises(UsageError, match="with several optimizers use attach=False"):
        quiet_demp(two, parts, batches=None)
    assert hooks_on(two) == 0
    options = {"total_steps": 8, "period": 3, "peak_noise_std": 1e-3}
    mine = [quiet_demp(one, whole, **options), quiet_demp(two, parts, attach=False, **options)]
    train(one, whole, IMAGE, range(8))
    for step in range(8):
        for optimizer in parts:
            optimizer.zero_grad()
        loss_of(two, step, IMAGE).backward()
        mine[1].before_step()
        for optimizer in parts:
            optimizer.step()
        report = mine[1].after_step()
        assert (report is not None) == ((step + 1) % 3 == 0)
    assert same(one, two)
    assert [r.removed for r in mine[0].history] == [r.removed for r in mine[1].history] == [1, 0]


def test_a_skipped_step_of_ones_own_counts_for_nothing():
    model = with_dead(act1=[0])
    pruner = quiet_demp(model, sgd(model), attach=False, period=1, peak_noise_std=0.1)
    before = copy.deepcopy(model)
    loss_of(model, 0, IMAGE).backward()
    pruner.before_step()
    pruner.skip_step()
    assert pruner.step == 0
    assert pruner.history == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_cuts_under_a_grad_scaler(fused: bool):
    model = with_dead(act1=[0, 1], dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    inputs = examples(IMAGE, dtype=torch.float32)
    pruner = demp.DemP(model, optimizer, example_inputs=(inputs,), batches=[inputs], total_steps=6, period=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, step, IMAGE)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert widths(model)[0] == 4
    assert [r.step for r in pruner.history] == [2, 4, 6]


# What goes ----------------------------------------------------------------------------------------------


def first_cut(model: nn.Module, **options) -> demp.CutReport:
    optimizer = sgd(model, lr=0.0)
    pruner = quiet_demp(model, optimizer, **options)
    return pruner.finish()


def test_the_floor_holds_and_the_report_says_so():
    model = with_dead(act1=list(range(6)), act3=[0, 1])
    report = first_cut(model)
    assert widths(model)[0] == 1
    assert "act1" in report.held
    assert "kept for the minimum width" in report.held["act1"]
    model = with_dead(act1=list(range(6)), act3=[0, 1])
    report = first_cut(model, floor=3, multiple=2)
    assert (widths(model)[0], widths(model)[2] % 2) == (4, 0)


def test_include_and_exclude_are_globs():
    def left(**options) -> tuple[int, int, int]:
        model = with_dead(act1=[0], act2=[1], act3=[2])
        first_cut(model, **options)
        return widths(model)

    assert left() == (5, 4, 6)
    assert left(include=("act[12]",)) == (5, 4, 7)
    assert left(exclude=("act1", "act3")) == (6, 4, 7)
    assert left(include=("act*",), exclude=("*2",)) == (5, 5, 6)


def test_exclusion_is_said_in_the_report():
    report = first_cut(with_dead(act1=[0]), exclude=("act1",))
    assert not report.happened
    assert report.held == {"act1": "excluded"}


@pytest.mark.parametrize(
    ("act", "options"),
    [
        (nn.GELU, {"criterion": "epsilon", "eps": 0.1}), (nn.SiLU, {"criterion": "negative-only"}),
        (lambda: nn.LeakyReLU(0.05), {}),
        (nn.GELU, {"criterion": "epsilon", "eps": 0.2, "eps_relative": False}), (nn.GELU, {"criterion": "sum"}),
    ],
)  # fmt: skip
def test_units_that_still_whisper_go_with_their_drift_reported(act: Callable[[], nn.Module], options: dict):
    model = with_dead(act1=[0, 1], act=act)
    report = first_cut(model, **options)
    assert widths(model)[0] == 4
    assert report.drift is not None
    assert report.difference is not None
    assert 0 < report.drift < 0.1
    assert report.difference < 1e-10


def test_by_default_flat_units_of_a_gelu_layer_leave_with_their_constants():
    model = with_dead(act1=[0, 1], act=nn.GELU)
    with torch.no_grad():
        model.norm1.bias[0] = 1.0
    report = first_cut(model, eps=0.5)
    assert report.removed >= 1 and widths(model)[0] == 6 - report.layers["act1"].before + report.layers["act1"].kept
    assert (report.dead, report.saturated) == (0, report.removed)
    assert 0 <= report.drift <= 0.02 and report.difference < 1e-10
    assert any("constants moved" in note for note in report.notes)


def test_by_default_leaky_units_with_a_positive_tail_stay():
    model = all_alive(act=lambda: nn.LeakyReLU(0.05))
    assert not first_cut(model).happened


def test_folding_the_mean_of_whispering_units_lowers_the_drift():
    drifts = {}
    for fold in (False, True):
        model = with_dead(act1=[0, 1, 2], act=lambda: nn.LeakyReLU(0.2))
        report = first_cut(model, fold=fold)
        assert report.removed == 3
        drifts[fold] = report.drift
    assert 0 < drifts[True] < drifts[False]


def test_a_second_run_starts_from_the_cut_network():
    model = with_dead(act1=[0, 3])
    first_cut(model)
    kill(model.norm1, [1])
    optimizer = sgd(settled(model))
    pruner = quiet_demp(model, optimizer, total_steps=6, period=2)
    assert pruner.metrics()["prune/neurons_alive"] == 16
    train(model, optimizer, IMAGE, range(6))
    assert [r.removed for r in pruner.history] == [1, 0, 0]
    assert model.conv1.out_channels == 3
    assert demp.cost(model, (examples(IMAGE),)).paper_flops > demp.cost(model, (examples(IMAGE),)).flops


def test_coupled_neurons_go_only_together():
    model = all_alive(ResidualNet)
    kill(model.stem_norm, [0, 1])
    kill(model.norm2, [1])
    report = first_cut(model, joins=False)
    assert report.removed == 2  # neuron 1 in both layers of the stream
    assert (model.stem.out_channels, model.conv2.out_channels, model.head.in_features) == (5, 5, 5)
    assert report.held == {"stem_act": "1 alive in a coupled layer"}


def test_each_block_output_loses_its_own_neurons():
    model = all_alive(ResidualNet)
    kill(model.stem_norm, [0, 1])
    kill(model.norm2, [1])
    report = first_cut(model)
    assert report.removed == 3 and report.held == {}
    assert (model.stem.out_channels, model.conv2.out_channels, model.head.in_features) == (4, 5, 5)
    assert report.depths is not None
    assert (report.depths.internal[0], report.depths.stream[0], report.depths.block[0]) == (0, 2, 1)


# What is said -------------------------------------------------------------------------------------------


def test_metrics_are_the_documented_names_and_true():
    model = with_dead(act1=[0, 1, 2])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=10, period=2, peak_strength=0.5, peak_noise_std=0.25, span=1.0)
    before = pruner.metrics()
    assert before == {
        "demp/strength": pytest.approx(0.02), "demp/noise_std": pytest.approx(0.01), "prune/neurons_alive": 18.0,
        "prune/neuron_sparsity": 0.0, "prune/cuts": 0.0, "prune/weights_masked": 0.0,
        "cost/parameters": float(sum(p.numel() for p in model.parameters())),
        "cost/flops": float(demp.cost(model, (examples(IMAGE),)).flops),
    }  # fmt: skip
    with torch.no_grad():
        model.norm1.running_var[:] = 1.0
    train(model, optimizer, IMAGE, range(3))
    after = pruner.metrics()
    alive = sum(widths(model))
    assert after["prune/neurons_alive"] == alive < 18
    assert after["prune/neuron_sparsity"] == pytest.approx(1 - alive / 18)
    assert after["prune/cuts"] == 1.0
    assert after["demp/strength"] == 0.5
    assert after["cost/parameters"] == sum(p.numel() for p in model.parameters()) < before["cost/parameters"]
    assert after["cost/flops"] == demp.cost(model, (examples(IMAGE),)).flops


def test_cuts_are_logged_and_nothing_is_printed(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture):
    model = with_dead(act1=[0, 1, 2])
    optimizer = sgd(model)
    with caplog.at_level(logging.INFO, logger="demp"):
        pruner = quiet_demp(model, optimizer, period=2)
        train(model, optimizer, IMAGE, range(4))
    assert [r.message for r in caplog.records] == [str(pruner.history[0])]
    assert str(pruner.history[0]).startswith("cut at step 2: 3 neurons of 18 removed, parameters 576 -> ")
    assert capsys.readouterr() == ("", "")
