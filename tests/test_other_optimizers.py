"""A second optimizer, a rebuilt one, one inside or around the pruner's, none at all; frozen and unfrozen parameters."""

import gc
import logging
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import demp
from demp.errors import UsageError
from runs import (
    IMAGE,
    VECTOR,
    Mlp,
    PlainNet,
    build,
    examples,
    kill,
    kill_linear,
    loss_of,
    quiet_demp,
    same,
    sgd,
    train,
    widths,
    with_dead,
)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_second_optimizer_is_named_once_and_its_state_follows(caplog: pytest.LogCaptureFixture):
    model = with_dead()
    pruner = quiet_demp(model, torch.optim.Adam(model.parameters(), 1e-4), total_steps=20, period=4)
    train(model, *pruner.optimizers, IMAGE, range(8))
    second = torch.optim.Adam(model.parameters(), 1e-4)
    train(model, second, IMAGE, range(8, 9))
    assert not warnings(caplog)
    train(model, second, IMAGE, range(9, 14))
    sentence = "the optimizer Adam steps PlainNet while its pruner is attached to Adam"
    assert [text.startswith(sentence) for text in warnings(caplog)] == [True]
    kill(model.norm1, [1, 4])
    report = pruner.finish()
    assert report.removed == 2 and widths(model) == (4, 5, 7)
    assert any(note.startswith(sentence) for note in report.notes) and sentence in str(report)
    assert all(second.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    train(model, second, IMAGE, range(14, 16))
    assert pruner.step == 8


def test_a_pruner_is_handed_over_and_the_run_is_that_of_one_optimizer(caplog: pytest.LogCaptureFixture):
    """Plain SGD has no state, so that a new one is the same."""
    ends = []
    for hand_over in (False, True):
        model = with_dead(act1=[0, 3])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        pruner = quiet_demp(model, optimizer, total_steps=12, period=4, peak_noise_std=1e-3)
        train(model, optimizer, IMAGE, range(6))
        if hand_over:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            pruner.attach_to(optimizer)
        train(model, optimizer, IMAGE, range(6, 12))
        assert pruner.step == 12 and not warnings(caplog)
        ends.append((model, [(r.step, r.removed) for r in pruner.history], pruner.finish().removed))
    assert ends[0][1:] == ends[1][1:] and same(ends[0][0], ends[1][0])


def test_the_optimizer_before_follows_as_long_as_it_lives():
    model = with_dead()
    first, second = (torch.optim.Adam(model.parameters(), 1e-4) for _ in range(2))
    pruner = quiet_demp(model, first, total_steps=12, period=4)
    train(model, first, IMAGE, range(3))
    pruner.attach_to(second)
    kill(model.norm1, [2])
    train(model, second, IMAGE, range(3, 8))
    assert widths(model) == (5, 5, 7)
    assert all(one.state[p]["exp_avg"].shape == p.shape for one in (first, second) for p in model.parameters())
    train(model, first, IMAGE, range(8, 9))


def test_what_cannot_be_handed_over():
    model = with_dead()
    pruner = quiet_demp(model, sgd(model), total_steps=4, period=2)
    with pytest.raises(UsageError, match="this pruner has its optimizer already"):
        pruner.attach_to(*pruner.optimizers)
    with pytest.raises(UsageError, match="trainable but in none of the given optimizers"):
        pruner.attach_to(torch.optim.SGD(model.head.parameters(), lr=0.1))
    train(model, *pruner.optimizers, IMAGE, range(1))
    assert pruner.step == 1
    pruner.detach()
    with pytest.raises(UsageError, match=r"this pruner has ended \(finish\(\) or detach\(\)\)"):
        pruner.attach_to(sgd(model))
    assert "detached at step 1 of 4: nothing is pushed or checked any more" in str(pruner.summary())


class TwoSteps(torch.optim.Optimizer):
    """As sharpness-aware minimisation: another optimizer moves the parameters, which it shares."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["seen"] = p.detach().clone()
        self.inner.step()


@pytest.mark.parametrize("attached", ["inner", "outer"])
def test_an_optimizer_inside_another_is_not_named_and_both_follow(attached: str, caplog: pytest.LogCaptureFixture):
    model = with_dead(act1=[0, 3])
    inner = torch.optim.Adam(model.parameters(), 1e-4)
    outer = TwoSteps(inner)
    pruner = quiet_demp(model, inner if attached == "inner" else outer, total_steps=8, period=4)
    train(model, outer, IMAGE, range(8))
    assert not warnings(caplog) and pruner.step == 8 and widths(model) == (4, 5, 7)
    assert all(inner.state[p]["exp_avg"].shape == outer.state[p]["seen"].shape == p.shape for p in model.parameters())


def test_an_optimizer_of_another_model_is_nobodys_business(caplog: pytest.LogCaptureFixture):
    model, other = with_dead(), with_dead()
    pruner = quiet_demp(model, sgd(model), total_steps=4, period=2)
    train(other, sgd(other), IMAGE, range(5))
    assert not warnings(caplog) and not pruner._run.others.cut_too()


def test_many_forwards_without_a_step_are_said_once(caplog: pytest.LogCaptureFixture):
    model = with_dead()
    pruner = quiet_demp(model, sgd(model), batches=None, total_steps=40)
    train(model, *pruner.optimizers, IMAGE, range(2))
    for _ in range(49):
        loss_of(model, 0, IMAGE)
    assert not warnings(caplog)
    for _ in range(30):
        loss_of(model, 0, IMAGE)
    (text,) = warnings(caplog)
    assert text.startswith("PlainNet ran 51 training forwards without a step of the optimizer that its pruner")
    pruner.finish()


def test_accumulation_is_no_idleness(caplog: pytest.LogCaptureFixture):
    model = with_dead()
    optimizer = sgd(model, lr=1e-6)
    pruner = quiet_demp(model, optimizer, batches=None, total_steps=4, dynamic=False)
    for _ in range(4):
        for micro in range(60):
            loss_of(model, micro % 3, IMAGE).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not warnings(caplog) and pruner.step == 4


def test_a_dropped_pruner_is_collected():
    gc.collect()  # the pruners of other tests
    hooks, model = len(_global_optimizer_post_hooks), with_dead()
    pruner = quiet_demp(model, sgd(model), total_steps=4)
    held = weakref.ref(pruner)
    assert len(_global_optimizer_post_hooks) == hooks + 1
    del pruner
    gc.collect()
    assert held() is None and len(_global_optimizer_post_hooks) == hooks


# Frozen and unfrozen ------------------------------------------------------------------------------------


def mlp_of(*frozen: str) -> Mlp:
    """All of its neurons are alive, and these parts are frozen."""
    model = build(Mlp)
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight *= 0.01
            layer.bias[:] = 5.0
    for name in frozen:
        for p in model.get_submodule(name).parameters():
            p.requires_grad_(False)
    return model


def demp_of(model: nn.Module, **options: Any) -> demp.Pruner:
    trained = [p for p in model.parameters() if p.requires_grad]
    return demp.DemP(
        model, torch.optim.Adam(trained, 1e-3), example_inputs=(examples(VECTOR),),
        batches=[examples(VECTOR, n=64)], **{"total_steps": 8, "period": 2, "peak_noise_std": 0.0, **options},
    )  # fmt: skip


def test_a_frozen_backbone_is_told_the_truth(caplog: pytest.LogCaptureFixture):
    model = mlp_of("fc1", "fc2")
    pruner = demp_of(model, peak_strength=10.0)
    (text,) = warnings(caplog)
    assert text.startswith("what makes the removable neurons of Mlp is frozen (requires_grad=False): no penalty")
    train(model, *pruner.optimizers, VECTOR, range(8))
    report = pruner.finish()
    (note,) = report.notes
    assert "what makes them is frozen" in note and "scale" not in note


def test_frozen_norms_leave_the_weights_to_the_penalty(caplog: pytest.LogCaptureFixture):
    model = build(PlainNet)
    for p in (*model.norm1.parameters(), *model.norm2.parameters()):
        p.requires_grad_(False)
    quiet_demp(model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad]))
    (text,) = warnings(caplog)
    assert text.startswith(
        "the normalisations that feed the removable neurons of PlainNet are frozen: the penalty acts"
    )


def test_parameters_unfrozen_later_are_pushed_or_named(caplog: pytest.LogCaptureFixture):
    model = mlp_of("fc1")
    pruner = demp_of(model, peak_strength=0.0)
    caplog.clear()
    train(model, *pruner.optimizers, VECTOR, range(2))
    model.fc1.requires_grad_(True)
    train(model, *pruner.optimizers, VECTOR, range(2, 6))
    sentence = "fc1.weight is trainable now but in no optimizer, so nothing trains it; add it with add_param_group"
    assert [text for text in warnings(caplog) if "fc1" in text] == [sentence]
    assert [sentence in report.notes for report in pruner.history] == [False, True, True]
    pruner.optimizers[0].add_param_group({"params": list(model.fc1.parameters())})
    model.zero_grad()
    kill_linear(model.fc1, [1])
    train(model, *pruner.optimizers, VECTOR, range(6, 8))
    assert pruner.history[-1].notes == () and pruner.history[-1].removed == 1
    assert pruner.optimizers[0].state[model.fc1.weight]["exp_avg"].shape == (11, 6)
