"""The pruner: attaches in one line, looks and cuts when it should, judges on what it was given."""

import copy

import pytest
import torch
from torch import Tensor, nn

import demp
from demp.errors import UsageError
from runs import (
    IMAGE,
    PlainNet,
    all_alive,
    build,
    examples,
    hooks_on,
    kill,
    quiet_demp,
    same,
    sgd,
    step_hooks,
    train,
    widths,
    with_dead,
)  # fmt: skip

# One line, and the loop stays as it is ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["probe", "window"])
def test_with_nothing_to_do_training_is_bit_equal_to_plain_training(mode: str):
    watched, plain = all_alive(), all_alive()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (watched, plain)]
    batches = [examples(IMAGE)] if mode == "probe" else None
    pruner = quiet_demp(watched, optimizers[0], batches=batches, total_steps=12, period=3, peak_strength=0.0)
    losses = [train(m, o, IMAGE, range(12)) for m, o in zip((watched, plain), optimizers, strict=True)]
    assert losses[0] == losses[1]
    assert same(watched, plain)
    assert [(r.step, r.happened) for r in pruner.history] == [(3, False), (6, False), (9, False), (12, False)]


def test_a_learning_rate_schedule_goes_on_through_cuts():
    rates = []
    for attach in (True, False):
        model = with_dead(act1=[1, 2])
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=12)
        pruner = quiet_demp(model, optimizer, total_steps=12, period=4) if attach else None
        mine = []
        for step in range(12):
            train(model, optimizer, IMAGE, range(step, step + 1))
            mine.append(optimizer.param_groups[0]["lr"])
            if step < 11:
                scheduler.step()
        rates.append(mine)
        if pruner is not None:
            assert pruner.history[0].removed == 2
    assert rates[0] == rates[1]


def test_a_cut_changes_objects_gradients_and_state_in_place():
    model = with_dead(act1=[0, 3], act2=[4], act3=[1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = {name: id(p) for name, p in model.named_parameters()}
    pruner = quiet_demp(model, optimizer, period=2)
    train(model, optimizer, IMAGE, range(2))
    assert widths(model) == (4, 4, 5)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    report = pruner.history[0]
    assert (report.removed, report.neurons_before, report.neurons_after) == (5, 18, 13)
    assert report.drift == report.difference == pytest.approx(0, abs=1e-12)
    assert report.judged == {"batches": 2, "examples": 16, "forwards": 16}
    train(model, optimizer, IMAGE, range(2, 6))


def test_a_cut_does_not_change_what_is_learnt_next():
    """Dead neurons removed or left in: the same losses afterwards."""
    losses = []
    for dynamic in (True, False):
        model = with_dead(act1=[0, 3], act3=[1, 2])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        quiet_demp(model, optimizer, period=2, dynamic=dynamic, peak_strength=0.0)
        losses.append(train(model, optimizer, IMAGE, range(12)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


def test_copies_of_the_model_follow():
    model = with_dead(act1=[0, 3])
    optimizer = sgd(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    quiet_demp(model, optimizer, period=2, copies=[average])
    train(model, optimizer, IMAGE, range(2))
    assert widths(average.module) == (4, 5, 7)
    average.update_parameters(model)
    average(examples(IMAGE))


# When ---------------------------------------------------------------------------------------------------


def checks(total_steps: int, **options) -> list[int | None]:
    """Steps of all checks of a run, the one of finish() last."""
    model = all_alive()
    optimizer = sgd(model, lr=1e-6)
    pruner = quiet_demp(model, optimizer, total_steps=total_steps, peak_strength=0.0, **options)
    train(model, optimizer, IMAGE, range(total_steps))
    pruner.finish()
    return [report.step for report in pruner.history]


def test_checks_come_every_twentieth_of_the_run_and_at_the_end():
    assert checks(40) == [*range(2, 41, 2)]
    assert checks(7, period=3) == [3, 6, 7]
    assert checks(12, period=4, prune_after=8) == [8, 12]
    assert checks(8, period=4, prune_at_start=True) == [1, 4, 8]
    assert checks(8, dynamic=False) == [8]


@pytest.mark.parametrize("mode", ["probe", "window"])
def test_without_dynamic_pruning_there_is_one_cut_at_the_end(mode: str):
    model = with_dead(act1=[0, 3])
    optimizer = sgd(model, lr=1e-6)
    pruner = quiet_demp(
        model, optimizer, total_steps=20, dynamic=False, batches=[examples(IMAGE)] if mode == "probe" else None
    )
    train(model, optimizer, IMAGE, range(20))
    assert (widths(model), pruner.history) == ((6, 5, 7), [])
    report = pruner.finish()
    assert (widths(model), report.removed, report.step) == ((4, 5, 7), 2, 20)
    assert report.judged["batches"] == (1 if mode == "probe" else 12)


def test_finish_removes_all_hooks_and_says_the_same_twice():
    for mode in ("probe", "window"):
        model = with_dead(act1=[0, 3])
        optimizer = sgd(model)
        pruner = quiet_demp(
            model, optimizer, total_steps=5, period=2, batches=[examples(IMAGE)] if mode == "probe" else None
        )
        assert step_hooks(optimizer) == 2
        train(model, optimizer, IMAGE, range(5))
        report = pruner.finish()
        assert pruner.finish() is report
        assert pruner.history[-1] is report
        assert (hooks_on(model), step_hooks(optimizer)) == (0, 0)
        train(model, optimizer, IMAGE, range(5, 7))
        assert (pruner.step, len(pruner.history)) == (5, 3)


def test_finish_may_come_early():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=100, dynamic=False)
    train(model, optimizer, IMAGE, range(3))
    assert pruner.finish().removed == 1


def test_detach_leaves_the_model_alone():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, period=2, batches=None)
    pruner.detach()
    train(model, optimizer, IMAGE, range(4))
    assert (hooks_on(model), step_hooks(optimizer), pruner.step, widths(model)) == (0, 0, 0, (6, 5, 7))


# Who judges ---------------------------------------------------------------------------------------------


def test_a_callable_is_asked_once_per_check_with_a_new_seed():
    seeds = []

    def batches(seed: int) -> list[Tensor]:
        seeds.append(seed)
        return [examples(IMAGE, n=4, seed=seed), examples(IMAGE, n=4, seed=-seed % 1000)]

    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=6, period=2, batches=batches, seed=100)
    train(model, optimizer, IMAGE, range(6))
    pruner.finish()
    assert seeds == [102, 104, 106]
    assert pruner.history[0].removed == 1
    assert pruner.history[0].judged == {"batches": 2, "examples": 8, "forwards": 8}


def test_a_callable_without_a_seed_may_give_other_data_each_time():
    calls = []

    def batches() -> list[Tensor]:
        calls.append(len(calls))
        return [examples(IMAGE, seed=calls[-1])]

    model = with_dead(act1=[0])
    optimizer = sgd(model)
    quiet_demp(model, optimizer, total_steps=6, period=2, batches=batches)
    train(model, optimizer, IMAGE, range(6))
    assert len(calls) == 3


def test_batches_judge_before_window_and_probe_needs_them():
    model = all_alive()
    with pytest.raises(UsageError, match="collect='probe' needs batches"):
        quiet_demp(model, sgd(model), collect="probe", batches=None)
    with pytest.raises(UsageError, match="batches is empty"):
        quiet_demp(model, sgd(model), batches=[])
    assert hooks_on(model) == 0


def test_a_window_is_open_before_checks_only():
    model = with_dead(act1=[0])
    optimizer = sgd(model, lr=1e-6)
    pruner = quiet_demp(model, optimizer, total_steps=60, period=30, batches=None)
    closed = hooks_on(model)
    open_at = []
    for step in range(60):
        if hooks_on(model) > closed:
            open_at.append(step)
        train(model, optimizer, IMAGE, range(step, step + 1))
    assert open_at == [*range(18, 30), *range(48, 60)]
    assert closed == 1
    first, second = pruner.history
    assert (first.judged, first.removed) == ({"batches": 12, "examples": 192, "forwards": 192}, 1)
    assert (second.judged, second.removed) == ({"batches": 12, "examples": 192, "forwards": 192}, 0)


def test_the_window_can_be_shorter_and_may_be_chosen_over_batches():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=12, period=6, collect="window", window_steps=2)
    train(model, optimizer, IMAGE, range(12))
    assert [r.judged for r in pruner.history] == [{"batches": 2, "examples": 32, "forwards": 32}] * 2


def test_a_neuron_that_spoke_in_the_window_stays():
    model = with_dead(act1=[0])
    optimizer = sgd(model, lr=0.0)
    pruner = quiet_demp(model, optimizer, total_steps=12, period=4, batches=None)
    shift = model.norm1.bias[0].item()
    for step in range(8):
        with torch.no_grad():
            model.norm1.bias[0] = 20.0 if step == 2 else shift
        train(model, optimizer, IMAGE, range(step, step + 1))
    assert [report.removed for report in pruner.history] == [0, 1]


def test_a_neuron_that_would_speak_in_evaluation_mode_stays():
    """Dead by the statistics of every training batch, but not by the running ones that the finished network uses."""
    model = with_dead(act1=[0, 1])
    optimizer = sgd(model, lr=0.0)
    pruner = quiet_demp(model, optimizer, total_steps=4, period=4, batches=None)
    model.norm1.running_mean[0] = -1e4
    train(model, optimizer, IMAGE, range(4))
    assert pruner.history[0].layers["act1"].kept == 5


class TwoInputs(nn.Module):
    """Takes an image and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = with_dead(act1=[0])

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.body(x) * factor


@pytest.mark.parametrize("call", ["positional", "keyword", "mixed"])
def test_the_window_understands_keyword_arguments(call: str):
    model = TwoInputs()
    optimizer = sgd(model)
    x, factor = examples(IMAGE), torch.tensor(2.0)
    pruner = demp.DemP(model, optimizer, example_inputs=(x, factor), total_steps=4, period=2)
    for _ in range(2):
        out = {
            "positional": lambda: model(x, factor), "keyword": lambda: model(x=x, factor=factor),
            "mixed": lambda: model(x, factor=factor),
        }[call]()  # fmt: skip
        out.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.history[0].removed == 1


@pytest.mark.parametrize("mode", ["probe", "window"])
def test_the_verdict_is_of_now(mode: str):
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    batches = [examples(IMAGE)] if mode == "probe" else None
    pruner = quiet_demp(model, optimizer, total_steps=20, period=4, exclude=("*",), batches=batches)
    train(model, optimizer, IMAGE, range(3))
    assert pruner.detect().dead["act1"].nonzero().flatten().tolist() == [0]
    train(model, optimizer, IMAGE, range(3, 4))
    kill(model.norm1, [3])
    train(model, optimizer, IMAGE, range(4, 6))
    assert pruner.detect().dead["act1"].nonzero().flatten().tolist() == [0, 3]


def test_a_step_that_only_creates_the_optimizers_state_does_not_count():
    """torch's distributed checkpoints take one before they load an optimizer."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = all_alive()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pruner = quiet_demp(model, optimizer, peak_noise_std=0.1, schedule="constant")
    before = [p.detach().clone() for p in model.parameters()]
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.state and pruner.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    train(model, optimizer, IMAGE, range(1))
    assert pruner.step == 1


def test_names_of_version_0_1_warn():
    pruner = quiet_demp(all_alive(), None)
    with pytest.warns(DeprecationWarning, match="state.removed"):
        assert torch.equal(pruner.gone, pruner.state.removed)
    with pytest.warns(DeprecationWarning, match="state.removed"):
        assert torch.equal(pruner._view.gone, pruner.state.removed)
    assert pruner._view.can_detect
    with pytest.warns(DeprecationWarning, match="can_judge is now can_detect"):
        assert pruner._view.can_judge
    with pytest.warns(DeprecationWarning, match="wants is now requirements"):
        assert pruner.wants is pruner.requirements
    for old in (pruner, pruner._view):
        with pytest.warns(DeprecationWarning, match=r"verdict\(\) is now detect\(\)"):
            assert old.verdict().dead.keys() == {layer.name for layer in pruner.graph.layers}


def test_options_of_version_0_1_work_with_one_warning():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = copy.deepcopy(model)
    given = {"example_inputs": (examples(IMAGE),), "total_steps": 4}
    with pytest.warns(DeprecationWarning, match=r"holders= is now copies=") as caught:
        pruner = demp.DemP(model, optimizer, holders=[average], **given)
    assert len(caught) == 1 and len(pruner._shrinking.copies) == 1
    pruner.detach()
    with pytest.warns(DeprecationWarning, match="fresh=False is now resume=True"):
        demp.DemP(model, optimizer, fresh=False, **given).detach()
    kill(model.norm1, [1])
    kill(average.norm1, [1])
    with pytest.warns(DeprecationWarning, match=r"holders= is now copies="):
        demp.cut(model, {"act1": [1]}, example_inputs=(examples(IMAGE),), holders=[average])
    assert len(average.norm1.weight) == len(model.norm1.weight) == 5
