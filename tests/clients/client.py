"""What the loops of the clients share: how they end, and what must be true of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import demp

STEPS, MIDDLE, PERIOD = 24, 15, 6


@dataclass
class Ended:
    """A run, broken off or not."""

    model: nn.Module
    pruner: Any
    inputs: tuple[Any, ...]
    average: Any = None
    """A copy of the model that can run, or a list of tensors in the order of its parameters."""


Client = Callable[..., Ended]
"""``client(folder, stop=None, resume=False)``: trains to ``stop`` or the end, writes its checkpoint at ``MIDDLE``."""


def options(**more: Any) -> dict[str, Any]:
    """Of every pruner here."""
    return {"total_steps": STEPS, "period": PERIOD, "peak_noise_std": 1e-3, "shows_cuts": False, **more}


@torch.no_grad()
def silence(*layers: nn.Module) -> None:
    """The first two neurons that each layer makes never speak."""
    for layer in layers:
        weight: Any = layer.weight
        weight[:2] = 0.0
        layer.bias[:2] = -5.0  # type: ignore[index]


def of(step: int, *shape: int, seed: int = 0) -> Tensor:
    """The numbers of a step."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + step), dtype=torch.float64)


def labels(step: int, count: int, classes: int) -> Tensor:
    """The labels of a step."""
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(step))


def same(one: Any, other: Any) -> bool:
    """Nested tensors, bit by bit."""
    if isinstance(one, nn.Module):
        return same(dict(one.state_dict()), dict(other.state_dict()))
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def check(client: Client, folder: Path, *, exact: bool = True) -> Ended:
    """Cuts are exact, a run that was broken off ends as the whole one, its copy fits, and a state dict is enough."""
    whole = client(folder / "whole")
    cuts = [report for report in whole.pruner.history if report.happened]
    assert cuts and all(r.difference is None or r.difference < 1e-10 for r in cuts if exact)
    client(folder / "broken", stop=MIDDLE)
    resumed = client(folder / "broken", resume=True)
    assert resumed.pruner.step == whole.pruner.step == STEPS
    assert same(whole.model, resumed.model) and same(whole.average, resumed.average)
    if whole.average is not None:
        tensors = dict(whole.model.named_parameters())
        copies = whole.average if isinstance(whole.average, list) else list(whole.average.parameters())
        assert [t.shape for t in copies] == [p.shape for p in tensors.values()]
    torch.save(whole.model.state_dict(), folder / "weights.pt")
    loaded = client(folder / "fresh", stop=0).model
    demp.load_state_dict(loaded, torch.load(folder / "weights.pt", weights_only=True))
    copied = copy.deepcopy(whole.model)
    with torch.no_grad():
        wanted, *others = (run(one, whole.inputs) for one in (whole.model, loaded, copied))
    assert all(same(wanted, other) for other in others)
    return whole


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The outputs in evaluation mode."""
    model.eval()
    return model(*inputs)
