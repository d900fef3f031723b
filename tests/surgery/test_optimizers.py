"""A dense twin with the same dead neurons and the cut network take the same steps, for every optimizer."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

import demp
from twins import DEAD, Net, batch, dying, remaining, train

OPTIONS: dict[str, dict[str, dict]] = {
    "SGD": {
        "": {"lr": 0.05},
        "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
        "nesterov": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    },
    "Adam": {"": {"lr": 0.01}, "amsgrad": {"lr": 0.01, "amsgrad": True}},
    "AdamW": {"amsgrad": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}},
    "NAdam": {"": {"lr": 0.01}},
    "RAdam": {"": {"lr": 0.01}},
    "Adamax": {"": {"lr": 0.01}},
    "RMSprop": {"": {"lr": 0.005}, "centered": {"lr": 0.005, "momentum": 0.9, "centered": True}},
    "Adagrad": {"": {"lr": 0.02}},
    "Adadelta": {"": {}},
    "Rprop": {"": {"lr": 0.005}},
    "ASGD": {"": {"lr": 0.02}},
    "Adafactor": {"without the parts that see sizes": {"lr": 1e-5, "eps": (None, 1e3), "d": 1e9}},
}
"""Every optimizer that takes all parameters, with options that change its state."""
APART = {"LBFGS", "Muon", "SparseAdam"}
"""Tested in test_optimizer_state.py, each on its own terms."""


def makes() -> Iterator[tuple[str, Callable[..., optim.Optimizer]]]:
    """Each row in every implementation that runs on a CPU."""
    for name, variants in OPTIONS.items():
        kind = getattr(optim, name)
        ways = [{}] + [{way: True} for way in ("foreach", "fused") if way in signature(kind).parameters]
        for variant, options in variants.items():
            for way in ways:
                yield " ".join([name, variant, *way]), partial(kind, **options, **way)


BEFORE, AFTER = 5, 10
MAKE = dict(makes())
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
FUSED = [name for name in MAKE if name.endswith("fused")]
"""Kernels of their own for every type."""


def started(make, dtype=torch.float64) -> tuple[nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """A network some steps into its training, some of its neurons dead since the start."""
    model = dying(dtype)
    optimizer = make(model.parameters())
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, BEFORE + AFTER)
    train(model, optimizer, range(BEFORE), schedule)
    return model, optimizer, schedule


def twin_of(make, model, optimizer, schedule):
    """A deep copy that trains on by itself."""
    twin = copy.deepcopy(model)
    other = make(twin.parameters())
    later = optim.lr_scheduler.CosineAnnealingLR(other, BEFORE + AFTER)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    later.load_state_dict(schedule.state_dict())
    return twin, other, later


def test_every_optimizer_of_torch_has_a_row():
    here = {name for name, kind in vars(optim).items() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
    assert OPTIONS.keys() | APART == here - {"Optimizer"}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(pytest.param(name, torch.float64, id=f"{name}-fp64") for name in MAKE),
        *(
            pytest.param(name, torch.float32, id=f"{name}-fp32", marks=[pytest.mark.slow] * (name not in FUSED))
            for name in MAKE
        ),
    ],
)
def test_twin(name, dtype):
    make = MAKE[name]
    model, optimizer, schedule = started(make, dtype)
    dense, other, later = twin_of(make, model, optimizer, schedule)
    report = demp.cut(model, DEAD, example_inputs=batch(0, dtype)[:1], optimizer=optimizer)
    assert report.removed == 7 and report.notes == ()

    wanted = train(dense, other, range(BEFORE, BEFORE + AFTER), later)
    found = train(model, optimizer, range(BEFORE, BEFORE + AFTER), schedule)
    assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) < TOLERANCE[dtype]
    assert remaining(dense, model) < TOLERANCE[dtype]
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]

    again, other, later = twin_of(make, model, optimizer, schedule)
    assert train(again, other, range(3), later) == train(model, optimizer, range(3), schedule)


def test_bfloat16_autocast_steps_are_the_same():
    model = dying(torch.float32)
    images = (batch(0)[0].float(),)
    dense = copy.deepcopy(model)
    twins = [(net, optim.Adam(net.parameters(), lr=0.01)) for net in (dense, model)]

    def step(at: int) -> None:
        for net, optimizer in twins:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(batch(at)[0].float()), batch(at)[1])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    step(0)
    demp.cut(model, DEAD, example_inputs=images, optimizer=twins[1][1])
    for at in range(1, 4):
        step(at)
    assert remaining(dense, model) < 1e-6


def test_several_optimizers_and_groups():
    model = dying()
    first = optim.Adam([{"params": model.conv.parameters(), "lr": 0.1}, {"params": model.norm.parameters()}])
    second = optim.SGD([*model.deep.parameters(), *model.fc.parameters(), *model.head.parameters()], momentum=0.9)
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    for optimizer in (first, second):
        optimizer.step()
        optimizer.zero_grad()
    demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=[first, second])
    assert first.state[model.conv.weight]["exp_avg"].shape == model.conv.weight.shape == (3, 2, 3, 3)
    assert second.state[model.head.weight]["momentum_buffer"].shape == (3, 3)
    assert [group["lr"] for group in first.param_groups] == [0.1, 1e-3]


def test_the_optimizer_of_another_model_is_refused():
    model = Net().double()
    with pytest.raises(demp.UsageError, match="SGD holds none of the model's parameters"):
        demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optim.SGD(Net().parameters(), lr=0.1))
