"""A network with dead neurons, its data, and how its weights compare with those of a dense twin."""

import torch
from torch import nn, optim
from torch.nn import functional as F

import comparing
import demp
import killing

BATCH = 8


class Net(nn.Module):
    """Convolution and norm, depthwise convolution, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.deep, self.fc, self.head = nn.Conv2d(5, 5, 3, groups=5), nn.Linear(20, 6), nn.Linear(6, 3)
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.acts[1](self.deep(self.acts[0](self.norm(self.conv(x)))))
        return self.head(self.acts[2](self.fc(x.flatten(1))))


DEAD = {"acts.0": [1, 3], "acts.1": [1, 3], "acts.2": [0, 2, 5]}


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, 3, (BATCH,), generator=generator)


def stays(name: str, tensor: torch.Tensor, kept: dict) -> torch.Tensor:
    """The part of a dense tensor that a cut left."""
    for (owner, axis), indices in kept.items():
        tensor = tensor.index_select(axis, indices) if owner == name else tensor
    return tensor


def train(model: nn.Module, optimizer: optim.Optimizer, steps: range, schedule=None) -> list[float]:
    """A plain loop; the loss of every step."""
    model.train()
    losses = []
    for step in steps:
        images, labels = batch(step, next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return losses


@torch.no_grad()
def remaining(dense: nn.Module, small: nn.Module) -> float:
    """Largest difference of the weights that stayed."""
    kept, now, worst = demp.surgery.record_of(small).kept, comparing.tensors_of(small), 0.0
    for name, tensor in comparing.tensors_of(dense).items():
        tensor = stays(name, tensor, kept)
        assert tensor.shape == now[name].shape
        worst = max(worst, float((tensor - now[name]).abs().max()))
    return worst


def dying(dtype: torch.dtype = torch.float64) -> Net:
    """A network in which DEAD are dead from the start."""
    model = Net().to(dtype)
    killing.kill(model, demp.trace(model, batch(0, dtype)[:1]), DEAD)
    return model
