"""Penalties on parameters: their gradient, added before the optimizer moves, and their value (paper, Sec. 3.1, F.5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demp import shards
from demp.errors import UsageError

KINDS = ("lasso", "l2")
TARGETS = ("scales", "all-scales", "parameters")


@dataclass(frozen=True)
class Penalty:
    """What is added to the loss: ``strength * sum |p|`` (lasso) or ``strength / 2 * sum p^2`` (l2), over ``on``."""

    kind: str
    strength: float
    on: str = "scales"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown penalty {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.on not in TARGETS:
            raise UsageError(f"unknown penalty target {self.on!r}; choose one of {', '.join(TARGETS)}")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UsageError(f"penalty strength is {self.strength}; give a finite number >= 0")


@torch.no_grad()
def add_gradient(
    parameters: Sequence[nn.Parameter], penalty: Penalty, loss_scale: Tensor | float | None = None
) -> None:
    """Add the penalty's gradient to ``.grad``, so that the optimizer's moments see it (App. F.5).

    Frozen parameters get none. ``loss_scale`` multiplies it where the gradients are still scaled (a GradScaler with a
    fused optimizer). The subgradient of |p| at 0 is 0.
    """
    parameters = [p for p in parameters if p.requires_grad]
    if penalty.strength == 0 or not parameters:
        return
    values: list[Tensor] = [shards.local(p.detach()) for p in parameters]
    signs = torch._foreach_sign  # pyright: ignore[reportPrivateImportUsage]
    slopes = list(signs(values)) if penalty.kind == "lasso" else values
    if loss_scale is not None:
        slopes = [slope * loss_scale for slope in slopes]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [shards.local(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_add_(gradients, slopes, alpha=penalty.strength)  # pyright: ignore[reportPrivateImportUsage]


def value(parameters: Sequence[nn.Parameter], penalty: Penalty) -> Tensor:
    """The penalty as a differentiable term of the loss."""
    if not parameters:
        return torch.zeros(())
    if penalty.kind == "lasso":
        return penalty.strength * torch.stack([p.abs().sum() for p in parameters]).sum()
    return 0.5 * penalty.strength * torch.stack([p.square().sum() for p in parameters]).sum()
