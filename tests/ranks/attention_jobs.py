"""Attention that loses heads on a budget, on one rank or on several."""

from typing import Any

import torch
from loops import world
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp
from attentive import CHANNELS, WIDTH, Attention, Block
from demp.parallel import whole_tensor

TOTAL = 10


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share of the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 5, WIDTH, generator=generator, dtype=torch.float64)
    goal = torch.randn(4, 5, 5, generator=generator, dtype=torch.float64)
    rank, world_size = world()
    return x[rank::world_size], goal[rank::world_size]


def on_a_budget(how: str) -> dict[str, Any]:
    """DemP to 60 % of the FLOPs: ``alone``, under ``ddp``, or ``sharded``."""
    torch.manual_seed(3)
    model: Any = Block(Attention("unbound")).double()
    trained: nn.Module = model
    if how == "ddp":
        trained = DistributedDataParallel(model)
    elif how == "sharded":
        fully_shard(model.attention)
        fully_shard(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    pruner = demp.DemP(
        trained, optimizer, example_inputs=batch(0)[:1], total_steps=TOTAL, budget=demp.Budget(flops=0.6), seed=5
    )
    for step in range(TOTAL):
        x, goal = batch(step)
        F.mse_loss(trained(x), goal).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        return whole_tensor(tensor.detach()).clone()

    return {
        "history": [(report.step, report.removed, report.hash) for report in pruner.history],
        "tensors": [whole(t) for p in model.parameters() for t in (p, optimizer.state[p]["exp_avg"])],
        "heads": whole(model.attention.out.weight).shape[1] // CHANNELS,
    }
