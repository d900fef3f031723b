"""DemP with a budget: where it lands, how neurons fade, and that a dense twin would have taken the same steps."""

import copy
import io
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
from demp.methods.course import remaining
from demp.methods.demp_config import DemPConfig
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, batch_at, build, examples, same, train
from thinning import mostly_slow

STEPS = 40


class Wide(nn.Module):
    """A convolutional network in which no neuron is more than a few percent of anything."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 48, 3, padding=1, bias=False)
        self.norm1, self.act1 = nn.BatchNorm2d(48), act()
        self.conv2 = nn.Conv2d(48, 40, 1)
        self.norm2, self.act2 = nn.BatchNorm2d(40), act()
        self.fc, self.act3 = nn.Linear(160, 64), act()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        x = self.act2(self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x))))))
        return self.head(self.act3(self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))))


BUDGETS = ("flops=0.5", "flops=0.25", "parameters=0.4", "neurons=0.6", "memory=0.3", "flops=0.6,parameters=0.3")
KINDS = (
    (Wide, IMAGE, {}),
    (ResidualNet, IMAGE, {"stream": 32, "inner": 64}),
    (Mlp, VECTOR, {"hidden": (120, 100)}),
    (Mlp, VECTOR, {"hidden": (100, 120), "act": nn.GELU}),
    (ResidualNet, IMAGE, {"stream": 40, "inner": 48, "act": nn.SiLU}),
)
OPTIMIZERS = (
    lambda p: torch.optim.AdamW(p, lr=3e-3),
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    lambda p: torch.optim.RMSprop(p, lr=1e-3),
)


def start(kind, shape, options, optimizer, budget, seed, **more):
    model = build(kind, seed=seed, **options)
    held = optimizer(model.parameters())
    pruner = demp.DemP(
        model, held, example_inputs=(examples(shape),), total_steps=STEPS, budget=budget, seed=seed, **more
    )
    return model, held, pruner


@pytest.mark.parametrize("seed", mostly_slow(range(30), quick=range(6)))  # all kinds, budgets and optimizers
def test_it_lands_on_its_budget_whatever_the_network_and_the_optimizer(seed):
    """Within a hundredth, or within one neuron where a neuron is more than that; never above."""
    kind, shape, options = KINDS[seed % len(KINDS)]
    budget = BUDGETS[seed % len(BUDGETS)]
    model, optimizer, pruner = start(kind, shape, options, OPTIMIZERS[seed % 3], budget, seed)
    train(model, optimizer, shape, range(STEPS))
    pruner.finish()
    meter = pruner._view.meter
    goals = meter.goals(pruner.config.budget)
    assert not meter.lack(goals, pruner.state.removed)
    fullest = max(meter.spent(name, pruner.state.removed) / goal for name, goal in goals.items())
    one = max(float(meter.savings(name, pruner.state.removed).max()) / goal for name, goal in goals.items())
    assert fullest > 1 - max(0.01, one), f"{fullest:.3f} of {pruner.config.budget}"
    assert sum(p.numel() for p in model.parameters()) == meter.spent("parameters", pruner.state.removed)
    assert pruner.step == STEPS and train(model, optimizer, shape, range(3))


@pytest.mark.parametrize("kind", mostly_slow(range(4), quick=(0, 1, 3)))
def test_the_cuts_of_faded_neurons_change_nothing(kind):
    model, optimizer, pruner = start(*KINDS[kind], OPTIMIZERS[0], "flops=0.4", 3)
    train(model, optimizer, KINDS[kind][1], range(STEPS))
    cuts = [report for report in pruner.history if report.happened]
    assert len(cuts) == 8 and all(report.drift < 1e-12 for report in cuts)
    assert [report.step for report in cuts] == list(pruner.method._course.marks[1:])


def test_a_dense_twin_takes_the_same_steps():
    """Faded in the same way, with what is handed over, and never cut, it has the same outputs to the end of the run."""
    model, optimizer, pruner = start(Wide, IMAGE, {}, OPTIMIZERS[1], "flops=0.5", 0, rounds=1, peak_noise_std=0.0)
    twin = copy.deepcopy(model)
    follows = OPTIMIZERS[1](twin.parameters())
    graph, course = pruner.graph, pruner.method._course
    scales = demp.regularization.OutputScales(twin, graph)
    going, handed = None, ()
    for step in range(STEPS):
        train(model, optimizer, IMAGE, range(step, step + 1))
        train(twin, follows, IMAGE, range(step, step + 1))
        if course._fading is not None:
            going, handed = course._fading.clone(), course._handovers
        if going is not None and step >= course.marks[0]:
            start_of, end_of = course.marks
            before, after = (remaining((count - start_of) / (end_of - start_of)) for count in (step, step + 1))
            factor = after / before if before > 0 else 0.0
            factors = torch.where(going, factor, 1.0)
            shrink = demp.regularization.Shrink(factors=factors, handovers=handed, share=before - after)
            scales.apply(shrink, graph.dense)
        x = examples(IMAGE, seed=77)
        assert torch.allclose(model.eval()(x), twin.eval()(x), atol=1e-11), f"step {step}"
        model.train(), twin.train()
    assert pruner.state.removed.any() and len(handed) == 2


def test_scales_fade_along_a_cosine_from_one_to_zero():
    assert [remaining(p) for p in (0.0, 1.0, 1.5)] == [1.0, 0.0, 0.0]
    assert remaining(0.5) == pytest.approx(0.5) and remaining(0.25) == pytest.approx((1 + 2**-0.5) / 2)
    model, optimizer, pruner = start(
        PlainNet, IMAGE, {}, lambda p: torch.optim.SGD(p, lr=0.0), "flops=0.5", 0, rounds=1
    )
    first, last = pruner.method._course.marks
    before = model.norm1.weight.detach().clone()
    seen = {}
    for step in range(last - 1):
        train(model, optimizer, IMAGE, range(step, step + 1))
        seen[step + 1] = model.norm1.weight.detach().clone()
    going = pruner.method._course._fading[pruner.graph.layer("act1").classes]
    assert going.any() and not going.all()
    for count, weight in seen.items():
        part = remaining((count - first) / (last - first)) if count > first else 1.0
        assert torch.allclose(weight, torch.where(going, part * before, before), atol=1e-3)


@pytest.mark.parametrize("moments", mostly_slow([(5, 24), (2, 11, 17, 33)], quick=[(5, 24)]))
def test_saved_and_resumed_it_ends_the_same_bit_for_bit(moments):
    def begun(saved=None):
        model, optimizer, pruner = start(*KINDS[1], OPTIMIZERS[0], "flops=0.4,parameters=0.5", 2)
        if saved is not None:
            state = torch.load(io.BytesIO(saved), weights_only=True)
            pruner.load_state_dict(state["pruner"])
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        return model, optimizer, pruner

    model, optimizer, pruner = begun()
    saved, step = {}, 0
    for at in moments:
        train(model, optimizer, IMAGE, range(step, at))
        state, buffer, step = (pruner.state_dict(), model.state_dict(), optimizer.state_dict()), io.BytesIO(), at
        torch.save(dict(zip(("pruner", "model", "optimizer"), state, strict=True)), buffer)
        saved[at] = buffer.getvalue()
    train(model, optimizer, IMAGE, range(step, STEPS))
    pruner.finish()
    for at, state in saved.items():
        again, follows, resumed = begun(state)
        train(again, follows, IMAGE, range(at, STEPS))
        resumed.finish()
        assert same(model, again), f"saved at step {at}"
        assert pruner.state.hash == resumed.state.hash


@pytest.mark.parametrize("at", [0, 3, 13, 25])
def test_a_run_that_ends_early_still_lands(at):
    model, optimizer, pruner = start(*KINDS[0], OPTIMIZERS[1], "flops=0.4", 1)
    train(model, optimizer, IMAGE, range(at))
    report = pruner.finish()
    assert pruner.flops <= 0.4 * pruner.graph.dense.flops()
    assert any("neurons removed without fading" in note for note in report.notes) or at == 25


def test_postponed_cuts_are_caught_up():
    """Nothing moves the weights here, so that every kept forward could still be followed by its backward."""
    model, _, pruner = start(*KINDS[0], lambda p: torch.optim.SGD(p, lr=0.0), "flops=0.4", 1, attach=False)
    kept = []
    for step in range(STEPS):
        x, y = batch_at(step, IMAGE)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pruner.before_step()
        ones = torch.ones(2, model.head.in_features, dtype=torch.float64)
        kept = [model.head(ones).sum()] if step < 30 else []  # a layer whose weights do not fade
        pruner.after_step()
    assert not any(report.happened for report in pruner.history if report.step < 30)
    del kept
    pruner.finish()
    assert any(report.happened for report in pruner.history if report.step < STEPS)
    assert pruner.flops <= 0.4 * pruner.graph.dense.flops()


def test_every_decision_is_one_log_line(caplog):
    model, optimizer, pruner = start(*KINDS[0], OPTIMIZERS[0], "flops=0.5", 0)
    with caplog.at_level(logging.INFO, logger="demp"):
        train(model, optimizer, IMAGE, range(STEPS))
    lines = [record.getMessage() for record in caplog.records if "budget:" in record.getMessage()]
    assert len(lines) == len(pruner.history) == 9
    assert "1.000 of flops" in lines[0] and "neurons fade until step" in lines[0]
    assert "as far as it must be" in lines[-1]


def test_no_penalty_no_warning_and_no_watching_but_where_neurons_are_chosen(caplog):
    with caplog.at_level(logging.WARNING, logger="demp"):
        model, optimizer, pruner = start(*KINDS[2], OPTIMIZERS[0], "flops=0.5", 0)
    assert not caplog.records
    assert pruner.metrics()["demp/strength"] == 0.0
    course, watched = pruner.method._course, []
    for step in range(STEPS):
        watched.append(any(module._forward_pre_hooks for module in model.modules() if module is not model))
        train(model, optimizer, VECTOR, range(step, step + 1))
    assert [step + 1 for step, open_now in enumerate(watched) if open_now] == list(course.marks[:-1])


def test_nothing_is_watched_or_handed_over_where_that_is_off():
    model, optimizer, pruner = start(*KINDS[0], OPTIMIZERS[0], "flops=0.5", 0, hand_over=False)
    for step in range(STEPS):
        assert not any(module._forward_pre_hooks for module in model.modules() if module is not model)
        train(model, optimizer, IMAGE, range(step, step + 1))
        assert not pruner.method._course._handovers
    assert pruner.flops <= 0.5 * pruner.graph.dense.flops()


def test_with_masks_of_another_method():
    model = build(PlainNet)
    optimizer = OPTIMIZERS[0](model.parameters())
    pruner = demp.methods.create(
        "demp+rigl", model, optimizer, example_inputs=(examples(IMAGE),), total_steps=STEPS, budget="flops=0.5"
    )
    train(model, optimizer, IMAGE, range(STEPS))
    pruner.finish()
    assert pruner.flops <= 0.5 * pruner.graph.dense.flops() and pruner.masks.masked()


def test_without_a_budget_nothing_is_new():
    assert DemPConfig().phase() is None


@pytest.mark.parametrize("kind", ["average", "module", "dict"])
def test_a_moving_average_loses_nothing_by_the_cuts(kind):
    """Its neurons fade with the model's, so that what is removed from it is zero in it, however slowly it follows."""
    model = build(Wide)
    optimizer = OPTIMIZERS[0](model.parameters())
    if kind == "average":
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999))
    elif kind == "module":
        ema = copy.deepcopy(model)
    else:
        ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(IMAGE),), total_steps=STEPS, budget="flops=0.5", copies=[ema],
        attach=False,
    )  # fmt: skip
    changes = []

    def outputs():
        inner = copy.deepcopy(model)
        if kind == "dict":
            inner.load_state_dict(ema, strict=False)
        else:
            inner.load_state_dict((ema.module if kind == "average" else ema).state_dict())
        with torch.no_grad():
            return inner.eval()(examples(IMAGE, seed=5))

    real = pruner._checks.make

    def check(**options):
        before, found = outputs(), real(**options)
        changes.append(float((outputs() - before).abs().max()))
        return found

    pruner._checks.make = check
    for step in range(STEPS):
        x, y = batch_at(step, IMAGE)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pruner.before_step()
        optimizer.step()
        if kind == "average":
            ema.update_parameters(model)
        else:
            theirs = ema if kind == "dict" else dict(ema.named_parameters())
            with torch.no_grad():
                for name, p in model.named_parameters():
                    theirs[name].lerp_(p, 0.001)
        pruner.after_step()
    assert sum(report.happened for report in pruner.history) > 4 and max(changes) < 1e-12
    drifts = [drift for report in pruner.history for drift in report.copies.values()]
    assert all(drift is None if kind == "dict" else drift < 1e-12 for drift in drifts) and len(drifts) > 4
