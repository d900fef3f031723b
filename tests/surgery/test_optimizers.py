"""A dense twin with the same dead neurons and the cut network take the same steps, for every optimizer."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

import demp
import nets

MAKE: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "sgd momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd momentum for-loop": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, foreach=False),
    "sgd momentum fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "sgd nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "adam for-loop": lambda p: optim.Adam(p, lr=0.01, foreach=False),
    "adam fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "adam amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused amsgrad": lambda p: optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "rmsprop momentum": lambda p: optim.RMSprop(p, lr=0.005, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.02),
    "adadelta": lambda p: optim.Adadelta(p),
    "rprop": lambda p: optim.Rprop(p, lr=0.005),
    "asgd": lambda p: optim.ASGD(p, lr=0.02),
}
BEFORE, AFTER, BATCH = 6, 20, 8


class Net(nn.Module):
    """Convolution and norm, depthwise convolution, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.deep, self.fc, self.head = nn.Conv2d(5, 5, 3, groups=5), nn.Linear(20, 6), nn.Linear(6, 3)
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.acts[1](self.deep(self.acts[0](self.norm(self.conv(x)))))
        return self.head(self.acts[2](self.fc(x.flatten(1))))


DEAD = {"acts.0": [1, 3], "acts.1": [1, 3], "acts.2": [0, 2, 5]}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 2, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (BATCH,), generator=generator)


def train(model: nn.Module, optimizer: optim.Optimizer, schedule, steps: range) -> list[float]:
    model.train()
    losses = []
    for step in steps:
        images, labels = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return losses


def started(make) -> tuple[nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """A network some steps into its training, some of its neurons dead since the start."""
    model = Net().double()
    nets.kill(model, demp.trace(model, batch(0)[:1]), DEAD)
    optimizer = make(model.parameters())
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, BEFORE + AFTER)
    train(model, optimizer, schedule, range(BEFORE))
    return model, optimizer, schedule


def twin_of(make, model, optimizer, schedule):
    """A deep copy that trains on by itself."""
    twin = copy.deepcopy(model)
    other = make(twin.parameters())
    later = optim.lr_scheduler.CosineAnnealingLR(other, BEFORE + AFTER)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    later.load_state_dict(schedule.state_dict())
    return twin, other, later


@torch.no_grad()
def remaining(dense: nn.Module, small: nn.Module) -> float:
    """Largest difference of the weights that stayed."""
    kept = demp.surgery.record_of(small).kept
    now, worst = nets.tensors_of(small), 0.0
    for name, tensor in nets.tensors_of(dense).items():
        for (owner, axis), indices in kept.items():
            tensor = tensor.index_select(axis, indices) if owner == name else tensor
        assert tensor.shape == now[name].shape
        worst = max(worst, float((tensor - now[name]).abs().max()))
    return worst


@pytest.mark.parametrize("name", MAKE)
def test_twin(name):
    make = MAKE[name]
    model, optimizer, schedule = started(make)
    dense, *rest = twin_of(make, model, optimizer, schedule)
    report = demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert report.removed == 7

    wanted = train(dense, *rest, range(BEFORE, BEFORE + AFTER))
    found = train(model, optimizer, schedule, range(BEFORE, BEFORE + AFTER))
    assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) < 1e-6
    assert remaining(dense, model) < 1e-6
    assert rest[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]

    again, other, later = twin_of(make, model, optimizer, schedule)
    assert train(again, other, later, range(3)) == pytest.approx(train(model, optimizer, schedule, range(3)), abs=1e-9)


def test_bfloat16_autocast_steps_are_the_same():
    model = Net()
    images = (batch(0)[0].float(),)
    nets.kill(model, demp.trace(model, images), DEAD)
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
    model = Net().double()
    graph = demp.trace(model, batch(0)[:1])
    nets.kill(model, graph, DEAD)
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


def test_state_of_other_shapes_is_refused_before_anything_is_touched():
    model, optimizer, _ = started(lambda p: optim.Adafactor(p))
    unchanged(model, optimizer, "Adafactor keeps state 'row_var'")

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
        loss.backward()
        return loss

    model = nn.Sequential(nn.Conv2d(2, 2, 1), Net()).double()
    graph = demp.trace(model, batch(0)[:1])
    nets.kill(model, graph, {f"1.{name}": dead for name, dead in DEAD.items()})
    lbfgs = optim.LBFGS(model.parameters(), max_iter=2)
    lbfgs.step(closure)
    lbfgs.zero_grad()
    unchanged(model, lbfgs, "LBFGS keeps one flat history", prefix="1.")


def unchanged(model: nn.Module, optimizer: optim.Optimizer, message: str, prefix: str = "") -> None:
    before, state = nets.state(model), copy.deepcopy(optimizer.state_dict())
    dead = {prefix + name: indices for name, indices in DEAD.items()}
    with pytest.raises(demp.CutError, match=message):
        demp.cut(model, dead, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert nets.same_state(before, model)
    assert nets.same_tree(state, optimizer.state_dict())
    assert demp.surgery.record_of(model) is None


def test_a_flat_history_that_is_still_empty_is_accepted():
    model = Net().double()
    nets.kill(model, demp.trace(model, batch(0)[:1]), DEAD)
    lbfgs = optim.LBFGS(model.parameters(), max_iter=2)
    demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=lbfgs)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
        loss.backward()
        return loss

    assert lbfgs.step(closure).item() > lbfgs.step(closure).item()


def test_the_optimizer_of_another_model_is_refused():
    model = Net().double()
    with pytest.raises(demp.UsageError, match="SGD holds none of the model's parameters"):
        demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optim.SGD(Net().parameters(), lr=0.1))
