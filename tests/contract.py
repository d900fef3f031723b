"""One small run of any method: what every row of the registry is put through."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp
from demp import methods
from demp.parallel import everyone
from runs import IMAGE, ResidualNet, batch_at, build, examples, kill

STEPS = 24
OPTIONS: dict[str, dict[str, Any]] = {
    "demp": {"period": 4},
    "prune-train": {"threshold": 0.05, "period": 4},
}
"""What a method needs to do something in so few steps; others do with their defaults."""
COMBINATIONS: tuple[str, ...] = (
    "demp+chase", "demp+magnitude", "demp+rigl", "demp+saliency", "demp+set", "demp+srigl",
)  # fmt: skip


def rows() -> list[str]:
    """Every registered method."""
    return methods.names()


def network(dtype: torch.dtype = torch.float64) -> ResidualNet:
    """A residual network in which two inner neurons are dead."""
    model = build(ResidualNet, stream=8, inner=12)
    kill(model.norm1, [2, 5])
    return model.to(dtype)  # type: ignore[return-value]


def scoring_batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Labelled batches of this rank."""
    rank, world_size = everyone().rank, everyone().world_size
    pairs = [batch_at(10_000 + seed * 10 + i, IMAGE) for i in range(3)]
    return [(x[rank::world_size], y[rank::world_size]) for x, y in pairs]


@cache
def smaller() -> str:
    """Where a network like ``network()`` is saved from which the dead neurons were removed."""
    model, place = network(), Path(tempfile.mkdtemp()) / "smaller"
    demp.cut(model, {"act1": [2, 5]}, example_inputs=(examples(IMAGE),), exact=False)
    demp.save(model, place, example_inputs=(examples(IMAGE),))
    return str(place)


def options_of(name: str) -> dict[str, Any]:
    """Of a method, or of the parts of a combination."""
    if name == "twin":
        return {"like": smaller()}
    return {key: value for part in name.split("+") for key, value in OPTIONS.get(part, {}).items()}


def parts(
    name: str, model: nn.Module | None = None, kind: type[torch.optim.Optimizer] = torch.optim.Adam, **given: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A model, its optimizer and a pruner with this method."""
    model = network() if model is None else model
    optimizer = kind(model.parameters(), lr=1e-2)  # type: ignore[call-arg]
    defaults = {
        "example_inputs": (examples(IMAGE),), "total_steps": STEPS, "seed": 7, "loss_fn": F.cross_entropy,
        "batches": scoring_batches,
    }  # fmt: skip
    return model, optimizer, methods.create(name, model, optimizer, **(defaults | options_of(name) | given))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, chosen: range) -> list[float]:
    """A plain loop on this rank's share of the batches."""
    rank, world_size = everyone().rank, everyone().world_size
    losses = []
    for step in chosen:
        x, y = batch_at(step, IMAGE)
        optimizer.zero_grad()
        losses.append(backward(F.cross_entropy(model(x[rank::world_size]), y[rank::world_size])))
        optimizer.step()
    return losses


def backward(loss: Tensor) -> float:
    """A loss that lives no longer than its backward, so that no check has to search for it."""
    loss.backward()
    return loss.item()


def replicated(name: str, budget: str = "") -> dict[str, Any]:
    """A run of half the length under DistributedDataParallel."""
    model = DistributedDataParallel(network())
    _, optimizer, pruner = parts(name, model, total_steps=STEPS // 2, **({"budget": budget} if budget else {}))
    steps(model, optimizer, range(STEPS // 2))
    pruner.finish()
    return {
        "weights": [p.detach().clone() for p in model.module.parameters()],
        "masks": pruner.masks.state_dict(),
        "history": [(r.step, r.removed, r.hash) for r in pruner.history],
        "moments": [t.clone() for p in model.parameters() for t in optimizer.state[p].values()],
    }


def did_something(pruner: demp.Pruner) -> bool:
    """Is a neuron or a weight gone?"""
    return bool(pruner.state.removed.any()) or pruner.masks.masked() > 0
