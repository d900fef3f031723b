"""Gaussian noise on the weights of live neurons, outside the optimizer's moments (paper, Sec. 3.2, Algorithm 1)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.parallel import is_sharded, local_piece, sharded_like

SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Noise:
    """What is added to the weights after a step: a normal deviate of standard deviation ``std`` per entry."""

    std: float
    times_lr: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std >= 0):
            raise UsageError(f"noise std is {self.std}; give a finite number >= 0")


@dataclass(frozen=True)
class Target:
    """One parameter, and which of its entries get noise: a mask that broadcasts against it, or all."""

    parameter: nn.Parameter
    mask: Tensor | None
    factor: float = 1.0


def generators(parameters: Iterable[nn.Parameter], seed: int, step: int) -> dict[torch.device, torch.Generator]:
    """One generator per device, a function of seed and step alone: replicas agree and resuming needs no state."""
    made: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        if parameter.device not in made:
            generator = torch.Generator(device=parameter.device)
            made[parameter.device] = generator.manual_seed((seed * SEED_STRIDE + step) % (1 << 63))
    return made


Scratch = dict[tuple[torch.device, torch.dtype], Tensor]
"""Memory for deviates, kept between steps: allocating it anew costs as much as filling it."""


@torch.no_grad()
def add_noise(targets: list[Target], noise: Noise, *, seed: int, step: int, scratch: Scratch | None = None) -> None:
    """Add noise: w <- w + z, z ~ N(0, std^2), where the mask allows.

    One stream per device serves the targets in order, each with as many deviates as it has entries now; those that a
    mask hides are drawn and dropped.
    """
    if noise.std == 0:
        return
    scratch = {} if scratch is None else scratch
    sources = generators((t.parameter for t in targets), seed, step)
    for target in targets:
        weight = target.parameter
        scale = noise.std * target.factor
        place, mask = weight, target.mask
        deviates = room_for(weight, scratch).normal_(generator=sources[weight.device])
        if is_sharded(weight):
            place, deviates = local_piece(weight), local_piece(sharded_like(deviates, weight))
            if mask is not None and mask.shape[0] > 1:
                mask = local_piece(sharded_like(mask, weight))
        if mask is None:
            place.add_(deviates, alpha=scale)
        else:
            place.addcmul_(deviates, mask.to(weight.dtype), value=scale)


def room_for(weight: Tensor, scratch: Scratch) -> Tensor:
    """Scratch memory in the shape of a weight."""
    key, size = (weight.device, weight.dtype), weight.numel()
    if key not in scratch or scratch[key].numel() < size:
        scratch[key] = torch.empty(size, dtype=weight.dtype, device=weight.device)
    return scratch[key][:size].view(weight.shape)
