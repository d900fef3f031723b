"""Wrappers around an optimizer, and what else is given in place of one."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import demp
from demp.errors import UsageError
from runs import IMAGE, quiet_demp, same, sgd, train, widths, with_dead


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As Accelerate's: a torch optimizer by its class alone, which has the other's state and steps it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Noam:
    """A schedule that holds the optimizer and steps it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    def step(self) -> None:
        self.optimizer.step()


class ScheduleFreeWrapper:
    """As schedulefree's: the base steps ``z``, which is in the weights meanwhile."""

    def __init__(self, base: torch.optim.Optimizer, momentum: float = 0.9) -> None:
        self.base, self.momentum, self.count = base, momentum, 0

    def zero_grad(self) -> None:
        self.base.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        held = [p for group in self.base.param_groups for p in group["params"] if p.grad is not None]
        for p in held:
            z = self.base.state[p].setdefault("z", p.clone())
            p.lerp_(z, 1 - 1 / self.momentum)
            p.data, self.base.state[p]["z"] = z.clone(), p.data.clone()
        self.base.step()
        self.count += 1
        for p in held:
            x, z = self.base.state[p]["z"], p.data.clone()
            x.lerp_(z, 1 / self.count)
            self.base.state[p]["z"], p.data = z, x.lerp(z, 1 - self.momentum)


def accelerated(optimizer: torch.optim.Optimizer) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


class _FabricOptimizer:
    """As Fabric's and Lightning's: it passes for the class of the optimizer in it, whose step it calls."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Fabric", (self.__class__, type(optimizer)), {})

    optimizer = property(lambda self: self._optimizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(**({} if closure is None else {"closure": closure}))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


@pytest.mark.parametrize("wrap", [AcceleratedOptimizer, _FabricOptimizer, accelerated])
@pytest.mark.parametrize("later", [False, True])
def test_the_optimizer_in_a_known_wrapper_is_taken(wrap: Callable[[Any], Any], later: bool):
    ends = []
    for wrapped in (False, True):
        model = with_dead(act1=[0, 3])
        inner = torch.optim.AdamW(model.parameters(), 1e-3)
        optimizer = wrap(inner) if wrapped else inner
        pruner = quiet_demp(model, None if later else optimizer, total_steps=12, period=4)
        if later:
            pruner.attach_to(optimizer)
        train(model, optimizer, IMAGE, range(12))
        assert pruner.optimizers == (inner,) and pruner.step == 12 and widths(model)[0] == 4
        assert all(inner.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
        ends.append(model)
    assert same(*ends)


def test_a_cut_by_hand_takes_it_too():
    model = with_dead(act1=[1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train(model, optimizer, IMAGE, range(2))
    optimizer.zero_grad()
    demp.cut(
        model, {"act1": [1]}, example_inputs=(torch.randn(4, *IMAGE, dtype=torch.float64),), exact=False,
        optimizer=AcceleratedOptimizer(optimizer),
    )  # fmt: skip
    assert optimizer.state[model.conv1.weight]["exp_avg"].shape == model.conv1.weight.shape == (5, 2, 3, 3)


class Unhooked(torch.optim.Optimizer):
    """A wrapper of the user's own that never calls ``Optimizer.__init__``."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.state = base, base.param_groups, base.state

    def step(self, closure: Any = None) -> None:
        self.base.step(closure)


class Rateless(torch.optim.Optimizer):
    """As transformers' Adafactor with ``relative_step``."""


WRONG = {
    "noam": (
        lambda m: Noam(sgd(m)),
        r"optimizer is a Noam, which is no torch.optim.Optimizer; if its step\(\) calls that of the SGD in its "
        r".optimizer on the model's weights, give that one; otherwise give it with attach=False, and call",
    ),
    "schedule free": (
        lambda m: ScheduleFreeWrapper(sgd(m)),
        r"steps its SGD on weights that it keeps beside the model's \(z\).*give its .base with attach=False, and call "
        r"before_step\(\) and after_step\(\) around the wrapper's step\(\)",
    ),
    "scheduler": (
        lambda m: torch.optim.lr_scheduler.StepLR(sgd(m), 1),
        "is the learning rate scheduler StepLR; give the SGD that it schedules, its .optimizer",
    ),
    "class": (lambda m: torch.optim.AdamW, r"is the class AdamW; give an optimizer: AdamW\(model.parameters\(\)\)"),
    "generator": (lambda m: m.parameters(), "holds parameters.*give the optimizer that is made from them"),
    "list": (lambda m: list(m.parameters()), "holds parameters.*give the optimizer that is made from them"),
    "groups": (lambda m: [{"params": list(m.parameters())}], "holds parameters.*give the optimizer that is made"),
    "string": (lambda m: "adam", "is the string 'adam'; give the optimizer itself"),
    "model": (lambda m: m, "optimizer is a PlainNet; give a torch.optim.Optimizer, a list of them, or None"),
    "no rate": (
        lambda m: Rateless(m.parameters(), {"lr": None}),
        r"Rateless has no learning rate \(lr=None: it makes one in each step\), and pruning follows the rate",
    ),
    "unhooked": (
        lambda m: Unhooked(sgd(m)),
        r"the step of Unhooked takes no hooks \(it never called Optimizer.__init__\); give its .base, if its step\(\) "
        "calls that one's, or use attach=False",
    ),
}


@pytest.mark.parametrize("given", WRONG)
def test_anything_else_is_refused_with_what_to_give(given: str):
    make, sentence = WRONG[given]
    model = with_dead()
    with pytest.raises(UsageError, match=sentence):
        quiet_demp(model, make(model))
    if given not in ("unhooked", "no rate"):
        with pytest.raises(UsageError, match=sentence):
            demp.cut(model, {"act1": [0]}, example_inputs=(torch.zeros(2, *IMAGE),), optimizer=make(model))


def test_a_schedule_free_wrapper_is_driven_by_hand():
    model = with_dead(act1=[0, 3])
    wrapper = ScheduleFreeWrapper(sgd(model, lr=1e-4))
    pruner = quiet_demp(model, wrapper.base, total_steps=8, period=4, attach=False)
    for step in range(8):
        wrapper.zero_grad()
        from_batch(model, step)
        pruner.before_step()
        wrapper.step()
        pruner.after_step()
    assert pruner.step == 8 and widths(model) == (4, 5, 7)
    assert all(wrapper.base.state[p]["z"].shape == p.shape for p in model.parameters())


def from_batch(model: nn.Module, step: int) -> None:
    x = torch.randn(8, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    model(x).square().mean().backward()


LOOKAHEAD = """
import logging, sys, collections, torch, demp
from torch import nn

class Lookahead(torch.optim.Optimizer):
    def __init__(self, base):
        self._optimizer_step_pre_hooks = collections.OrderedDict()
        self._optimizer_step_post_hooks = collections.OrderedDict()
        self._base_optimizer, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state = collections.defaultdict(dict)

    def step(self, closure=None):
        return self._base_optimizer.step(closure)

torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)
optimizer = Lookahead(torch.optim.AdamW(model.parameters()))
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100) if sys.argv[1] == "scheduled" else None
pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=24, period=8, shows_cuts=False)
for _ in range(24):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if schedule is not None:
        schedule.step()
print(pruner.step)
"""
"""As timm's, which does without ``Optimizer.__init__``: nobody hooks the step of its class."""


@pytest.mark.parametrize("way", ["plain", "scheduled"])
def test_a_class_that_skips_the_init_of_torch_is_counted_from_the_first_step(way: str):
    run = [sys.executable, "-c", LOOKAHEAD, way]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["24"]), done.stderr
    assert "while its pruner is attached" not in done.stderr
