"""Cuts that cannot be made at their moment: said, skipped and tried again; what can be known is known at once."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
from demp.errors import CutError, UsageError
from demp.parallel import ElsewhereError
from demp.surgery import denormals, transaction
from runs import IMAGE, PlainNet, build, examples, loss_of, quiet_demp, same, sgd, widths, with_dead
from runs import train as train_steps

REASON = "act1 is another object since the model was traced"


def replaced(model: Any) -> nn.Module:
    """Put another activation into the model; the one that it had."""
    before, model.act1 = model.act1, nn.ReLU()
    return before


def test_a_cut_that_cannot_be_made_is_said_once_skipped_and_made_later(caplog):
    model, twin = with_dead(act1=[0]), with_dead(act1=[0])
    optimizer, other = sgd(model), sgd(twin)
    options = {"period": 4, "total_steps": 100, "peak_strength": 0.0}
    pruner = quiet_demp(model, optimizer, **options)
    train_steps(model, optimizer, IMAGE, range(3))
    before = replaced(model)
    with caplog.at_level(logging.INFO, logger="demp"):
        train_steps(model, optimizer, IMAGE, range(3, 6))
    assert widths(model) == (6, 5, 7)
    assert [(r.step, r.removed, r.difference) for r in pruner.history] == [(4, 0, None), (5, 0, None), (6, 0, None)]
    assert all(r.notes[0].startswith(f"skipped: {REASON}") for r in pruner.history)
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO", "INFO"]
    assert caplog.records[0].message.startswith(f"cut at step 4 skipped: {REASON}")
    assert caplog.records[0].message.endswith("training goes on, and the cut is tried again")
    model.act1 = before
    train_steps(model, optimizer, IMAGE, range(6, 10))
    assert [(r.step, r.removed) for r in pruner.history[3:]] == [(7, 1), (8, 0)]
    train_steps(twin, other, IMAGE, range(10))
    other.zero_grad()
    inputs = (examples(IMAGE),)
    demp.cut(twin, {"act1": [0]}, example_inputs=inputs, optimizer=other)
    assert comparing.gap(comparing.outputs(model, inputs), comparing.outputs(twin, inputs)) < 1e-10
    last = pruner.finish()
    assert last.notes[-1].startswith(f"3 checks were skipped, the last at step 6 ({REASON}")
    assert last.notes[-1] in str(last)


def test_finish_says_why_nothing_was_cut(caplog):
    model = with_dead(act1=[0])
    pruner = quiet_demp(model, sgd(model))
    replaced(model)
    with caplog.at_level(logging.INFO, logger="demp"):
        report = pruner.finish()
    assert REASON in str(report) and not report.happened and pruner.history == [report]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert report.hash == demp.cut(with_dead(), {}, example_inputs=(examples(IMAGE),)).hash
    assert pruner.finish() is report


def test_who_wants_errors_gets_them():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, period=2, on_error="raise")
    train_steps(model, optimizer, IMAGE, range(1))
    replaced(model)
    with pytest.raises(CutError, match=REASON):
        train_steps(model, optimizer, IMAGE, range(1, 2))
    with pytest.raises(CutError, match=REASON):
        pruner.finish()
    with pytest.raises(UsageError, match="on_error is 'ignore'; give 'skip'"):
        quiet_demp(with_dead(), optimizer, on_error="ignore")


def test_errors_of_the_users_own_code_are_not_hidden():
    def batches(seed: int) -> Iterator[Tensor]:
        raise KeyError("no such column")

    model = with_dead(act1=[0])
    optimizer = sgd(model)
    quiet_demp(model, optimizer, period=2, batches=batches)
    with pytest.raises(KeyError, match="no such column"):
        train_steps(model, optimizer, IMAGE, range(2))


def test_an_error_of_another_rank_is_skipped_only_if_it_is_demps_own():
    skips = demp.pruner.skipping.Skips("skip", 10)
    assert skips.covers(ElsewhereError("rank 1 failed")) and skips.covers(CutError("no"))
    assert not skips.covers(ElsewhereError("rank 1 failed", fault=True))


def test_a_method_that_was_kept_from_cutting_selects_again():
    """A budget whose faded neurons could not be removed at their mark removes them at the next try, exactly."""
    model = build(PlainNet)
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=40, budget="neurons=0.6", rounds=2)
    marks = [step for step in range(41) if pruner.method.is_due(step)]
    train_steps(model, optimizer, IMAGE, range(marks[1] - 1))
    before = replaced(model)
    train_steps(model, optimizer, IMAGE, range(marks[1] - 1, marks[1]))
    assert pruner.history[-1].notes[0].startswith("skipped") and pruner.state.neurons == 18
    model.act1 = before
    train_steps(model, optimizer, IMAGE, range(marks[1], marks[1] + 1))
    cut = pruner.history[-1]
    assert cut.step == marks[1] + 1 and cut.removed > 0 and cut.drift < 1e-10
    train_steps(model, optimizer, IMAGE, range(marks[1] + 1, 40))
    pruner.finish()
    assert pruner.state.neurons == 10


def test_a_method_whose_cut_failed_has_not_selected(monkeypatch):
    model = build(PlainNet)
    optimizer = sgd(model)
    pruner = demp.methods.create(
        "random", model, optimizer, example_inputs=(examples(IMAGE),), total_steps=10, prune_at=0.3
    )

    def refuse(*_):
        raise CutError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(transaction, "raise_if_unshrinkable", refuse)
        train_steps(model, optimizer, IMAGE, range(3))
    assert pruner.history[-1].notes[0].startswith("skipped") and pruner.state.neurons == 18
    train_steps(model, optimizer, IMAGE, range(3, 4))
    assert pruner.history[-1].step == 4 and pruner.state.neurons == 9


def test_a_saved_run_remembers_what_it_skipped():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, period=4, total_steps=100)
    before = replaced(model)
    train_steps(model, optimizer, IMAGE, range(4))
    model.act1 = before
    state = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    pruner.detach()
    other = with_dead(act1=[0])
    again = sgd(other)
    resumed = quiet_demp(other, again, period=4, total_steps=100)
    for part, saved in zip((resumed, other, again), state, strict=True):
        part.load_state_dict(saved)
    train_steps(other, again, IMAGE, range(4, 5))
    assert [(r.step, r.removed) for r in resumed.history] == [(5, 1)]
    assert "1 check was skipped, the last at step 4" in resumed.finish().notes[-1]


# Autocast -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["each step", "the loop"])
def test_steps_inside_autocast_are_those_outside_of_it(around):
    finals = []
    for inside in (True, False):
        model = with_dead(act1=[0, 2], dtype=torch.float32)
        optimizer = sgd(model)
        inputs = examples(IMAGE, dtype=torch.float32)
        pruner = demp.DemP(model, optimizer, example_inputs=(inputs,), batches=[inputs], total_steps=9, period=3)
        for step in range(9):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, step, IMAGE)
                loss.backward()
                if inside:
                    optimizer.step()
            if not inside:
                optimizer.step()
            optimizer.zero_grad()
        assert pruner.history[0].removed == 2 and pruner.history[0].step == 3
        finals.append(model)
    assert same(*finals)
    if around == "the loop":
        model = with_dead(act1=[0, 2], dtype=torch.float32)
        optimizer = sgd(model)
        quiet_demp(model, optimizer, example_inputs=(inputs,), batches=[inputs], total_steps=9, period=3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            train_steps(model, optimizer, IMAGE, range(3))
            assert torch.is_autocast_enabled("cpu") and widths(model)[0] == 4
            assert torch.equal(model(inputs), copy.deepcopy(model)(inputs))  # whose casts are new


# Optimizers ---------------------------------------------------------------------------------------------


class Preconditioned(torch.optim.SGD):
    """Keeps a square matrix for every weight."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.dim() > 1:
                    self.state[p]["left"] = torch.eye(len(p))
        return super().step(closure)


class Codes(torch.Tensor):
    """Integers that stand for something."""

    @staticmethod
    def __new__(cls, codes: Tensor) -> "Codes":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing is known of any operation but a change of the handle."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(f"{func} of packed tensors")


class Packed(Codes):
    """Values in steps of a quarter."""

    def dequantize(self) -> Tensor:
        """What the codes stand for."""
        return self.codes.double() / 4


class Remembering(torch.optim.SGD):
    """Keeps something packed for every parameter."""

    kind: type = Packed

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            if "kept" not in self.state[p]:
                self.state[p]["kept"] = self.kind((p.detach() * 4).round().to(torch.int8))
        return super().step(closure)


def test_state_of_another_shape_is_refused_after_the_first_step():
    model = with_dead(act1=[0])
    optimizer = Preconditioned(model.parameters(), lr=0.01)
    quiet_demp(model, optimizer, total_steps=1000)
    with pytest.raises(UsageError, match=r"Preconditioned keeps state 'left' \(\(6, 6\)\) for conv1.weight"):
        train_steps(model, optimizer, IMAGE, range(1))


def test_packed_state_follows_as_what_it_stands_for():
    model = with_dead(act1=[0])
    optimizer = Remembering(model.parameters(), lr=0.0)
    pruner = quiet_demp(model, optimizer, total_steps=1000)
    train_steps(model, optimizer, IMAGE, range(1))
    wanted = optimizer.state[model.conv2.weight]["kept"].dequantize()[:, 1:]
    assert denormals.sweep([optimizer]) == 0
    report = pruner.finish()
    assert report.removed == 1
    assert torch.equal(optimizer.state[model.conv2.weight]["kept"], wanted)
    assert "Remembering keeps what was cut in full precision" in report.notes
    assert type(optimizer.state[model.head.weight]["kept"]) is Packed


def test_packed_state_that_cannot_be_sliced_is_refused_after_the_first_step(monkeypatch):
    monkeypatch.setattr(Remembering, "kind", Codes)
    model = with_dead(act1=[0])
    optimizer = Remembering(model.parameters(), lr=0.0)
    quiet_demp(model, optimizer, total_steps=1000)
    with pytest.raises(UsageError, match="Remembering keeps state 'kept' for conv1.weight in a Codes, which cannot be"):
        train_steps(model, optimizer, IMAGE, range(1))


# Modules that refuse new attributes ---------------------------------------------------------------------


class Strict(nn.Module):
    """Refuses attributes that it does not have when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.fc, self.norm2, self.head = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        vars(self)["built"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        known = (*vars(self), *vars(self).get("_modules", ()), *vars(self).get("_parameters", ()))
        if "built" in vars(self) and name not in known:
            raise AttributeError(f"no attribute {name} here")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.stem(x)))
        return self.head(torch.relu(self.norm2(self.fc(h)) + h))


def test_a_module_that_refuses_new_attributes_is_cut_saved_and_loaded(tmp_path):
    def make() -> nn.Module:
        return Strict().double()

    model, x = make(), torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        model.norm1.weight[:4], model.norm1.bias[:4] = 0.0, -1.0
        model.norm2.weight[:2], model.norm2.bias[:2] = 0.0, -1e6
    before = comparing.outputs(model, (x,))
    layers = [layer.name for layer in demp.trace(model, (x,)).layers]
    report = demp.cut(model, {layers[0]: range(4), layers[1]: range(2)}, example_inputs=(x,))
    assert report.removed == 6
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
    loaded = demp.load(make, demp.save(model, tmp_path / "strict"))
    assert comparing.gap(comparing.outputs(model, (x,)), comparing.outputs(loaded, (x,))) == 0.0
