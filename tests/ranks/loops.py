"""A small network for several ranks, its plain training step, and what tests do to it on the way."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp
from demp.parallel import everyone, local_piece, sharded_like, whole_tensor

WIDTH, CUTS, PERIOD, BATCH = 24, 6, 2, 16
TOTAL = 20
"""Steps that a run is planned for."""


class Net(nn.Module):
    """Two hidden layers without statistics of the batch, so that ranks add up to one process."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, WIDTH)
        self.act1 = act()
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.act2 = act()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.fc2(self.act1(self.fc1(x)))))


def net(act: type[nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64) -> Net:
    """Seeded; every neuron of the first layer is alive on any batch."""
    torch.manual_seed(3)
    model = Net(act).to(dtype)
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight *= 0.3
            layer.bias.fill_(3.0)
    return model


def world() -> tuple[int, int]:
    return everyone().rank, everyone().world_size


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """This rank's share of the batch of a step."""
    x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    rank, world_size = world()
    return x[rank::world_size], y[rank::world_size]


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One plain step."""
    x, y = batch(step, next(model.parameters()).dtype)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def pruner_of(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> demp.Pruner:
    defaults = {
        "total_steps": TOTAL,
        "period": PERIOD,
        "peak_strength": 1e-3,
        "peak_noise_std": 1e-3,
        "seed": 5,
    }
    return demp.DemP(model, optimizer, example_inputs=batch(0)[:1], **{**defaults, **options})


def ready(act: type[nn.Module] = nn.ReLU) -> tuple[Net, DistributedDataParallel, torch.optim.Optimizer]:
    """A wrapped model after a step."""
    model = net(act)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
    step_of(wrapped, optimizer, 0)
    optimizer.zero_grad()
    return model, wrapped, optimizer


def refused(work: Any) -> tuple[str, str]:
    """Kind and text of the error that ``work`` ends in."""
    try:
        work()
    except demp.DempError as error:
        return type(error).__name__, str(error)
    return "", ""


@torch.no_grad()
def kill_rows(layer: nn.Linear, neurons: list[int]) -> None:
    """As ``runs.kill_linear``, whether the layer is sharded or not."""
    for tensor, value in ((layer.weight, 0.0), (layer.bias, -5.0)):
        full = whole_tensor(tensor).clone()
        full[neurons] = value
        local_piece(tensor).copy_(local_piece(sharded_like(full, tensor)))


@torch.no_grad()
def kill_norm(norm: nn.Module, neuron: int) -> None:
    """As ``runs.kill``, whether the norm is sharded or not."""
    for tensor, value in ((norm.weight, 0.0), (norm.bias, -5.0)):
        full = whole_tensor(tensor).clone()
        full[neuron] = value
        local_piece(tensor).copy_(local_piece(sharded_like(full, tensor)))
