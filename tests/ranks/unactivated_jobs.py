"""Channels that no activation touches, lost on a budget, on one rank or on several."""

from typing import Any

import torch
from loops import world
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp
from demp.parallel import whole_tensor
from streaming import network, words

TOTAL = 12
KINDS = {"streams": "stream", "layer streams": "stream", "linear": "linear"}


def bottlenecks() -> Any:
    """Linear layers with an activation behind every second one."""
    torch.manual_seed(3)
    layers = [nn.Linear(6, 12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.Linear(10, 5)]
    return nn.Sequential(*layers).double()


def mine(whole: Tensor) -> Tensor:
    """This rank's share of a batch."""
    rank, world_size = world()
    return whole[rank::world_size]


def loss(model: nn.Module, option: str, step: int) -> Tensor:
    """On this rank's share of the batch of a step."""
    if KINDS[option] == "stream":
        x = mine(torch.cat([words(step), words(100 + step)]))
        return F.cross_entropy(model(x).flatten(0, 1), x.roll(1, 1).flatten())
    generator = torch.Generator().manual_seed(step)
    x, goal = (torch.randn(8, size, generator=generator, dtype=torch.float64) for size in (6, 5))
    return F.mse_loss(model(mine(x)), mine(goal))


def on_a_budget(option: str, how: str) -> dict[str, Any]:
    """DemP to 60 % of the FLOPs with ``option``: ``alone``, under ``ddp``, or ``sharded``.

    ``layer streams`` are read by layer norms, ``streams`` by RMS norms.
    """
    norms = {"streams": "torch", "layer streams": "layer"}
    model: Any = network(norms[option], tied=False) if option in norms else bottlenecks()
    examples = words(0) if option in norms else torch.zeros(2, 6, dtype=torch.float64)
    trained: nn.Module = model
    if how == "ddp":
        trained = DistributedDataParallel(model)
    elif how == "sharded":
        fully_shard(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    options: dict[str, Any] = {"total_steps": TOTAL, "budget": demp.Budget(flops=0.6), "rounds": 2, "seed": 5}
    if option == "layer streams":
        options["exclude"] = ("blocks.*",)  # a budget would rather take their heads and neurons
    pruner = demp.DemP(trained, optimizer, example_inputs=(examples,), **options, **{option.split()[-1]: True})
    for step in range(TOTAL):
        loss(trained, option, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    lost = {
        layer.name: layer.width - pruner.state.widths[layer.name]
        for layer in pruner.graph.layers
        if layer.activation == KINDS[option]
    }

    def whole(tensor: Tensor) -> Tensor:
        return whole_tensor(tensor.detach()).clone()

    return {
        "history": [(report.step, report.removed, report.hash) for report in pruner.history],
        "tensors": [whole(t) for p in model.parameters() for t in (p, optimizer.state[p]["exp_avg"])],
        "lost": lost,
    }
