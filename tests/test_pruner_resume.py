"""Saved at any step and resumed, a run ends as if it had never stopped: bit by bit, cuts included."""

import copy
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import demp
from demp.errors import UsageError
from demp.graph.joins import model_joins
from demp.surgery import record_of
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples, hooks_on, kill, train
from thinning import mostly_slow

STEPS = 18


class Run:
    """Everything that a training script builds, from scratch, deterministically."""

    def __init__(self, kind: type[nn.Module], optimizer: str, options: dict[str, Any], total: int = STEPS) -> None:
        self.shape = VECTOR if kind is Mlp else IMAGE
        self.model = build(kind, seed=1)
        if optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), lr=0.03)
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        options = dict(options)
        if options.pop("probe"):
            options["batches"] = lambda seed: [examples(self.shape, n=4, seed=31 * seed + i) for i in range(2)]
        self.pruner = demp.DemP(
            self.model, self.optimizer, example_inputs=(examples(self.shape),), total_steps=total, seed=5, **options
        )
        self.metrics: dict[int, dict[str, float]] = {}
        self.losses: dict[int, float] = {}
        self.reports_at: list[int] = []
        """Number of reports when each save was made."""

    def save(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(
            {
                "pruner": self.pruner.state_dict(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            buffer,
        )
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.pruner.load_state_dict(state["pruner"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def go(self, keep_saves: bool = False) -> list[bytes]:
        """To the end; what would have been saved after each number of steps, if wanted."""
        saves = []
        for step in range(self.pruner.step, self.pruner.total_steps):
            if keep_saves:
                saves.append(self.save())
                self.reports_at.append(len(self.pruner.history))
            (self.losses[step],) = train(self.model, self.optimizer, self.shape, range(step, step + 1))
            self.metrics[step] = self.pruner.metrics()
        saves += [self.save()] if keep_saves else []
        self.reports_at.append(len(self.pruner.history))
        self.pruner.finish()
        return saves

    def end(self) -> dict[str, Any]:
        """What the run came to."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}


def equal(a: Any, b: Any) -> bool:
    """Nested structures of tensors, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def reports(pruner: demp.Pruner) -> list[dict[str, Any]]:
    """The history, without the clock."""
    found = [report.to_dict() for report in pruner.history]
    for report in found:
        del report["seconds"], report["surgery_seconds"]
    return found


STRONG = {"peak_strength": 0.3, "peak_noise_std": 0.1}
RUNS: dict[str, tuple[type[nn.Module], str, dict[str, Any]]] = {
    "probe": (ResidualNet, "adam", {"probe": True, "period": 4, **STRONG, "peak_noise_std": 0.6}),
    "window": (PlainNet, "adam", {"probe": False, "period": 5, "window_steps": 3, **STRONG}),
    "window always open": (Mlp, "sgd", {"probe": False, "period": 4, "live_mask": "last-check", **STRONG}),
    "window, one cut at the end": (Mlp, "adam", {"probe": False, "dynamic": False, "window_steps": 6, **STRONG}),
    "target": (PlainNet, "adam", {
        "probe": True, "period": 4, "target_neuron_sparsity": 0.5, "live_mask": "last-check", **STRONG}),
}  # fmt: skip
SOME, EVERY = (4, 9, 17), range(STEPS + 1)
"""After a check of the first run, inside a window of the second, before the last step."""


@pytest.mark.parametrize("moments", mostly_slow((SOME, EVERY), quick=(SOME,)), ids=("some steps", "every step"))
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(name: str, moments: Sequence[int]):
    whole = Run(*RUNS[name])
    saves = whole.go(keep_saves=True)
    assert sum(report.happened for report in whole.pruner.history) >= (1 if "end" in name else 2)
    for step in moments:
        resumed = Run(*RUNS[name])
        resumed.load(saves[step])
        assert resumed.pruner.step == step
        resumed.go()
        assert equal(resumed.end(), whole.end()), f"saved at step {step}"
        assert all(resumed.losses[s] == whole.losses[s] for s in range(step, STEPS))
        assert all(resumed.metrics[s] == whole.metrics[s] for s in range(step, STEPS))
        assert reports(resumed.pruner) == reports(whole.pruner)[whole.reports_at[step] :]
        mine, theirs = resumed.pruner.summary(), whole.pruner.summary()
        assert replace(mine, remarks=()) == replace(theirs, remarks=())
        assert resumed.pruner.metrics() == whole.pruner.metrics()


def test_a_resumed_model_remembers_its_dense_self():
    whole = Run(*RUNS["probe"])
    saves = whole.go(keep_saves=True)
    resumed = Run(*RUNS["probe"])
    resumed.load(saves[11])
    resumed.go()
    inputs = (examples(IMAGE),)
    assert demp.cost(resumed.model, inputs) == demp.cost(whole.model, inputs)
    assert demp.cost(resumed.model, inputs).paper_flops > demp.cost(resumed.model, inputs).flops


def test_a_copy_of_the_model_follows_when_resuming():
    whole = Run(*RUNS["probe"])
    saves = whole.go(keep_saves=True)
    kind, optimizer, options = RUNS["probe"]
    model = build(kind, seed=1)
    average = torch.optim.swa_utils.AveragedModel(model)
    resumed = Run(kind, optimizer, options)
    pruner = demp.DemP(
        model, torch.optim.Adam(model.parameters()), example_inputs=(examples(IMAGE),), total_steps=STEPS,
        batches=[examples(IMAGE)], copies=[average], period=5,
    )  # fmt: skip
    state = torch.load(io.BytesIO(saves[-1]), weights_only=True)
    pruner.load_state_dict(state["pruner"])
    shapes = {name: tensor.shape for name, tensor in state["model"].items()}
    assert {name: tensor.shape for name, tensor in average.module.state_dict().items()} == shapes
    assert resumed.pruner.step == 0


def test_a_postponed_cut_is_made_up_for_after_resuming():
    def attached() -> tuple[nn.Module, torch.optim.Optimizer, demp.Pruner]:
        model = build(PlainNet)
        model.norm1.weight.data[0] = 0.0
        model.norm1.bias.data[0] = -1.0
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        pruner = demp.DemP(
            model, optimizer, example_inputs=(examples(IMAGE),), batches=[examples(IMAGE)], total_steps=40, period=3,
            peak_noise_std=0.0,
        )  # fmt: skip
        return model, optimizer, pruner

    model, optimizer, pruner = attached()
    train(model, optimizer, IMAGE, range(2))
    pruner.detach()
    optimizer.step()
    pending = model(examples(IMAGE)).sum()
    assert pruner.after_step() is None
    state = copy.deepcopy(pruner.state_dict())
    del pending
    other, other_optimizer, resumed = attached()
    resumed.load_state_dict(state)
    other.load_state_dict(model.state_dict())
    train(other, other_optimizer, IMAGE, range(3, 4))
    assert [report.step for report in resumed.history] == [4]
    assert resumed.history[0].removed >= 1


def test_the_state_is_plain_and_small():
    run = Run(*RUNS["window"])
    train(run.model, run.optimizer, run.shape, range(4))
    state = run.pruner.state_dict()
    assert state["judge"]["window"] is not None
    assert state["judge"]["last_inputs"] is None
    assert len(run.save()) - len(Run(*RUNS["window"]).save()) < 100_000
    allowed = (int, float, str, bool, type(None), torch.Tensor)

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for v in value.values() for leaf in leaves(v)]
        if isinstance(value, (list, tuple)):
            return [leaf for v in value for leaf in leaves(v)]
        return [value]

    assert all(isinstance(leaf, allowed) for leaf in leaves(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "snap"}, "the saved run has method 'snap', this pruner 'demp'"),
        ({"gone": torch.zeros(3, dtype=torch.bool)}, "the saved run is of another model"),
    ],
)
def test_a_state_of_another_run_is_refused_and_nothing_changes(change: dict, message: str):
    run = Run(*RUNS["probe"])
    before = copy.deepcopy(run.model.state_dict())
    hooks = hooks_on(run.model)
    with pytest.raises(UsageError, match=message):
        run.pruner.load_state_dict({**run.pruner.state_dict(), **change})
    assert equal(run.model.state_dict(), before)
    assert (run.pruner.step, hooks_on(run.model)) == (0, hooks)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_back_to_an_earlier_state_in_the_same_process(name: str):
    whole = Run(*RUNS[name])
    saves = whole.go(keep_saves=True)
    run = Run(*RUNS[name])
    for step in (14, 3, 17, 9, 0):  # narrower and wider in turn
        held, gone = list(run.model.parameters()), run.pruner.state.removed
        run.load(saves[step])
        assert all(one is other for one, other in zip(held, run.model.parameters(), strict=True))
        assert run.pruner.step == step and (step or not run.pruner.state.removed.any())
        assert run.pruner.summary().checks == whole.reports_at[step]
        assert step != 3 or bool((gone & ~run.pruner.state.removed).any()) or "end" in name
        run.losses.update(zip((step,), train(run.model, run.optimizer, run.shape, range(step, step + 1)), strict=True))
        assert run.losses[step] == whole.losses[step]
    run.load(saves[1])
    run.go()
    assert equal(run.end(), whole.end())
    assert reports(run.pruner)[-1] == reports(whole.pruner)[-1]


def test_a_finished_run_goes_back_and_stays_finished(caplog):
    run = Run(*RUNS["window"])
    saves = run.go(keep_saves=True)
    last = run.save()
    caplog.clear()
    run.load(last)
    assert not caplog.records
    run.load(saves[3])
    assert (
        f"has ended (finish() or detach()): model and optimizer have the widths of step {run.pruner.step}"
        in caplog.text
    )
    assert run.pruner.finished and not run.pruner.at_work and hooks_on(run.model) == 0
    early = Run(*RUNS["window"])
    early.load(saves[3])
    assert torch.equal(early.model.eval()(examples(IMAGE)), run.model.eval()(examples(IMAGE)))


def test_what_returns_is_zero_until_it_is_loaded():
    run = Run(*RUNS["probe"])
    saves = run.go(keep_saves=True)
    narrow, now = run.model.state_dict(), run.pruner.state.removed
    seen = {name: tensor.clone() for name, tensor in narrow.items()}
    moments = {name: run.optimizer.state[p]["exp_avg"].clone() for name, p in run.model.named_parameters()}
    state = torch.load(io.BytesIO(saves[0]), weights_only=True)
    run.pruner.load_state_dict(state["pruner"])
    assert not bool(run.pruner.state.removed.any()) and record_of(run.model) is None and not model_joins(run.model)
    state = run.pruner.graph.at(now)
    here: dict[str, dict[int, torch.Tensor]] = {}
    for slot in run.pruner.graph.slots:
        here.setdefault(slot.tensor, {})[slot.axis] = state.kept(slot.classes)
    for name, tensor in run.model.state_dict().items():
        assert tensor.shape == run.pruner.graph.shapes[name]
        both = [(tensor, seen[name])]
        if name in moments:
            both.append((run.optimizer.state[run.model.get_parameter(name)]["exp_avg"], moments[name]))
        for wide, small in both:
            left = wide.clone()
            for axis, index in here.get(name, {}).items():
                left = left.index_select(axis, index)
            assert torch.equal(left, small) and int(wide.count_nonzero()) == int(small.count_nonzero())


def test_a_longer_and_a_shorter_plan_resume_with_schedules_of_their_own(caplog):
    whole = Run(*RUNS["probe"])
    saves = whole.go(keep_saves=True)
    for total, at in ((30, 9), (12, 6), (30, 18)):
        resumed, fresh = Run(*RUNS["probe"], total), Run(*RUNS["probe"], total)
        caplog.clear()
        resumed.load(saves[at])
        said = f"planned for 18 steps, this one for {total}: from step {at} on all schedules are those of {total}"
        assert said in caplog.text and len(caplog.records) == 1
        fresh.pruner.step = at
        for key in ("demp/strength", "demp/noise_std"):
            assert resumed.pruner.metrics()[key] == fresh.pruner.metrics()[key]
        before = len(resumed.pruner.history)
        resumed.go()
        assert resumed.pruner.step == total and resumed.pruner.history[-1].step == total
        assert [r.step for r in resumed.pruner.history[before:]] == [
            *(s for s in range(at + 1, total) if s % 4 == 0), total
        ]  # fmt: skip


def test_past_the_end_nothing_is_pushed_and_the_dead_still_go(caplog):
    def made(total: int) -> tuple[nn.Module, torch.optim.Optimizer, demp.Pruner]:
        model = build(PlainNet)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        options = {"peak_strength": 0.1, "peak_noise_std": 0.1, "schedule": "constant", "batches": [examples(IMAGE)]}
        given = (examples(IMAGE),)
        return (
            model,
            optimizer,
            demp.DemP(model, optimizer, example_inputs=given, total_steps=total, period=2, **options),
        )

    model, optimizer, pruner = made(4)
    train(model, optimizer, IMAGE, range(4))
    assert "goes on after" not in caplog.text
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.01)
    train(model, optimizer, IMAGE, range(4, 6))
    train(twin, other, IMAGE, range(4, 6))
    assert equal(model.state_dict(), twin.state_dict()) and pruner.metrics()["demp/strength"] == 0.0
    assert caplog.text.count("training goes on after the total_steps of 4") == 1
    left = len(model.norm1.weight)
    kill(model.norm1, [0, 2])
    train(model, optimizer, IMAGE, range(6, 8))
    assert pruner.history[-1].step == 8 and len(model.norm1.weight) == left - 2
    checked = [report.step for report in pruner.history]
    assert pruner.finish().step == 8 and [report.step for report in pruner.history] == checked


def test_a_pruner_may_come_before_its_optimizer():
    whole = Run(*RUNS["probe"])
    saves = whole.go(keep_saves=True)
    late = Run(*RUNS["probe"])
    late.pruner.detach()
    options = {**RUNS["probe"][2], "batches": lambda seed: [examples(IMAGE, n=4, seed=31 * seed + i) for i in range(2)]}
    del options["probe"]
    early = demp.DemP(late.model, None, example_inputs=(examples(IMAGE),), total_steps=STEPS, seed=5, **options)
    with pytest.raises(UsageError, match="a pruner without an optimizer; call attach_to"):
        early.finish()
    state = torch.load(io.BytesIO(saves[11]), weights_only=True)
    early.load_state_dict(state["pruner"])
    late.model.load_state_dict(state["model"])
    late.optimizer = torch.optim.Adam(late.model.parameters(), lr=0.03)
    with pytest.raises(UsageError, match="holds none of the model's parameters"):
        early.attach_to(torch.optim.Adam(build(PlainNet).parameters()))
    early.attach_to(late.optimizer)
    with pytest.raises(UsageError, match="has its optimizer already"):
        early.attach_to(late.optimizer)
    late.optimizer.load_state_dict(state["optimizer"])
    late.pruner = early
    late.go()
    assert equal(late.end(), whole.end())


def test_what_a_resumed_method_draws_is_drawn_by_the_saved_seed():
    def made(seed: int) -> demp.Pruner:
        model = build(Mlp, seed=1)
        options = {"example_inputs": (examples(VECTOR),), "total_steps": 2, "prune_at": 0.5, "attach": False}
        return demp.methods.create("random", model, torch.optim.SGD(model.parameters(), lr=0.1), seed=seed, **options)

    whole, resumed, other = made(7), made(0), made(0)
    resumed.load_state_dict(whole.state_dict())
    for pruner in (whole, resumed, other):
        pruner.before_step()
        assert pruner.after_step().happened
    assert torch.equal(resumed.state.removed, whole.state.removed)
    assert not torch.equal(other.state.removed, whole.state.removed)
