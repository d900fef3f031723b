"""Literal twins of the mask methods: a training loop of its own, with Python sorting, on plain tensors.

Nothing here knows of pruners, views or engines. A step: gradients; where due, new masks, and what leaves or returns is
zero without memory; masked gradients; the optimizer; masked weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


def ranked(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest; of equal ones the lower flat index."""
    flat = scores.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(scores.shape)


def at_density(entries: int, density: float) -> int:
    return max(1, round(entries * density))


def cubic_exact(step: int, updates: list[int], sparsity: float) -> float:
    p = (step - updates[0]) / (updates[-1] - updates[0])
    return sparsity * (1 - (1 - p) ** 3)


def cubic_plus_one(step: int, first: int, last: int, sparsity: float) -> float:
    p = min(max((step + 1 - first) / (last - first), 0.0), 1.0)
    return sparsity * (1 - (1 - p) ** 3)


def rewired(mask: Tensor, weight: Tensor, growth: Tensor, fraction: float) -> Tensor:
    """Jaxpruner's two rankings: existing weights first by |w|, then the kept ones and the highest growth scores."""
    n, ones = mask.numel(), int(mask.sum())
    density = ones / n
    size = weight.abs()
    kept = ranked(torch.where(mask, size, size.min() - 1), max(1, round(n * density * (1 - fraction))))
    return ranked(torch.where(kept, growth.max() + 1, growth), ones)


@dataclass
class Run:
    """A model that trains with masks; ``update(step, parameters, masks)`` gives the new ones or None."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, int], Tensor]
    update: Callable[[int, dict[str, nn.Parameter], Masks], Masks | None]
    masks: Masks = field(default_factory=dict)

    def begin(self, masks: Masks) -> None:
        self.masks = masks
        for name, mask in masks.items():
            self.model.get_parameter(name).data[~mask] = 0.0

    def step(self, step: int) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimizer.zero_grad()
        self.loss(self.model, step).backward()
        new = self.update(step, parameters, self.masks)
        for name, mask in (new or {}).items():
            old = self.masks.get(name, torch.ones_like(mask))
            for place in [parameters[name].data, *self.memory(parameters[name])]:
                place[mask != old] = 0.0
            self.masks[name] = mask
        for name, mask in self.masks.items():
            grad = parameters[name].grad
            assert grad is not None
            grad[~mask] = 0.0
        self.optimizer.step()
        for name, mask in self.masks.items():
            parameters[name].data[~mask] = 0.0

    def memory(self, parameter: nn.Parameter) -> list[Tensor]:
        state = self.optimizer.state.get(parameter, {})
        return [t for t in state.values() if isinstance(t, Tensor) and t.shape == parameter.shape]


def erk(shapes: dict[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """One layer per round."""
    dense: list[str] = []
    while True:
        rest = [name for name in shapes if name not in dense]
        zeros = {name: math.floor(sparsity * math.prod(shape)) for name, shape in shapes.items()}
        ones = sum(math.prod(shapes[name]) - zeros[name] for name in rest) - sum(zeros[name] for name in dense)
        eps = ones / sum(sum(shapes[name]) for name in rest)
        worst = max(rest, key=lambda name: sum(shapes[name]) / math.prod(shapes[name]))
        if eps * sum(shapes[worst]) / math.prod(shapes[worst]) <= 1:
            return {n: 1.0 if n in dense else eps * sum(s) / math.prod(s) for n, s in shapes.items()}
        dense.append(worst)
