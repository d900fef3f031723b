"""Penalties on parameters: their gradient, added before the optimizer moves, and their value (paper, Sec. 3.1, F.5)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.files.checks import check_choices
from demp.parallel import local_piece
from demp.regularization.slices import Slices

PenaltyKind = Literal["lasso", "l2", "group-lasso"]
"""What `Penalty.kind` may be."""
PenaltyTarget = Literal["scales", "all-scales", "parameters", "channels", "producers"]
"""What `Penalty.on` may be."""
SLICED: dict[PenaltyTarget, PenaltyKind] = {"channels": "group-lasso", "producers": "l2"}
"""Where a penalty acts on slices of weights that belong to neurons, and which kind acts there."""


@dataclass(frozen=True)
class Penalty:
    """What is added to the loss, over ``on``.

    ``lasso``: ``strength * sum |p|``. ``l2``: ``strength / 2 * sum p^2``; over ``producers``, with a factor per neuron,
    ``strength / 2 * sum_c factors[c] * sum p_c^2``. ``group-lasso``, over ``channels``: ``strength * sum_g ||p_g||``.
    """

    kind: PenaltyKind
    strength: float
    on: PenaltyTarget = "scales"
    factors: Tensor | None = field(default=None, compare=False)
    """One number per class of the graph; None: 1 for all."""

    def __post_init__(self) -> None:
        check_choices(self, "penalty")
        if self.kind != SLICED.get(self.on, self.kind) or (self.kind == "group-lasso" and self.on not in SLICED):
            raise UsageError(
                f"penalty {self.kind!r} does not act on {self.on!r}; group-lasso acts on 'channels', only l2 on "
                "'producers'"
            )
        if self.factors is not None and self.on != "producers":
            raise UsageError("penalty factors are per neuron that a weight makes; use on='producers'")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UsageError(f"penalty strength is {self.strength}; give a finite number >= 0")


# Whole parameters ---------------------------------------------------------------------------------------


@torch.no_grad()
def add_gradient(
    parameters: Sequence[nn.Parameter],
    penalty: Penalty,
    loss_scale: Tensor | float | None = None,
    rising: Collection[int] = (),
) -> None:
    """Add the penalty's gradient to ``.grad``, so that the optimizer's moments see it (App. F.5).

    Frozen parameters get none. ``loss_scale`` multiplies it where the gradients are still scaled (a GradScaler with a
    fused optimizer). ``rising`` are the ids of parameters whose group climbs (``maximize=True``): there the sign turns.
    The subgradient of |p| at 0 is 0.
    """
    parameters = [p for p in parameters if p.requires_grad]
    if penalty.strength == 0 or not parameters:
        return
    values: list[Tensor] = [local_piece(p.detach()) for p in parameters]
    signs = torch._foreach_sign  # pyright: ignore[reportPrivateImportUsage]
    slopes = list(signs(values)) if penalty.kind == "lasso" else values
    add(parameters, slopes, penalty.strength, loss_scale, rising)


def add(
    parameters: Sequence[nn.Parameter],
    slopes: list[Tensor],
    strength: float,
    loss_scale: Tensor | float | None,
    rising: Collection[int] = (),
) -> None:
    """``strength * slope`` on top of every gradient, or below it for those that rise; a missing one counts as zero."""
    if rising:
        slopes = [-slope if id(p) in rising else slope for p, slope in zip(parameters, slopes, strict=True)]
    if loss_scale is not None:
        slopes = [slope * loss_scale for slope in slopes]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [local_piece(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_add_(gradients, slopes, alpha=strength)  # pyright: ignore[reportPrivateImportUsage]


def value(parameters: Sequence[nn.Parameter], penalty: Penalty) -> Tensor:
    """The penalty as a differentiable term of the loss."""
    if not parameters:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    if penalty.kind == "lasso":
        return penalty.strength * torch.stack([p.abs().sum() for p in parameters]).sum()
    return 0.5 * penalty.strength * torch.stack([p.square().sum() for p in parameters]).sum()


# Slices that belong to neurons --------------------------------------------------------------------------


@torch.no_grad()
def add_slice_gradient(
    slices: Sequence[Slices],
    penalty: Penalty,
    loss_scale: Tensor | float | None = None,
    rising: Collection[int] = (),
) -> None:
    """``add_gradient`` for the penalties on slices: ``factors[c] * w`` (l2), the sum of ``w / ||w_g||`` (group-lasso).

    The subgradient of a norm at 0 is 0.
    """
    slices = [s for s in slices if s.parameter.requires_grad]
    if penalty.strength == 0 or not slices:
        return
    factors = {} if penalty.kind == "group-lasso" else factors_of(penalty, slices)
    found: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for one in slices:
        weight = local_piece(one.parameter.detach())
        slope = weight * one.per_index(factors[weight.device]) if factors else one.over_norms(weight)
        _, before = found.get(id(one.parameter), (None, None))
        found[id(one.parameter)] = (one.parameter, slope if before is None else before.add_(slope))
    parameters, slopes = [p for p, _ in found.values()], [slope for _, slope in found.values()]
    add(parameters, slopes, penalty.strength, loss_scale, rising)


def slice_value(slices: Sequence[Slices], penalty: Penalty) -> Tensor:
    """``value`` for the penalties on slices."""
    if not slices:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    if penalty.kind == "group-lasso":
        return penalty.strength * torch.stack([s.norms(s.parameter).sum() for s in slices]).sum()
    factors = factors_of(penalty, slices)
    terms = [(s.per_index(factors[s.parameter.device]) * s.parameter.square()).sum() for s in slices]
    return 0.5 * penalty.strength * torch.stack(terms).sum()


def factors_of(penalty: Penalty, slices: Sequence[Slices]) -> dict[torch.device, Tensor]:
    """The factor of each class, once per device; 0 for slices without neurons."""
    given = penalty.factors
    if given is None:
        given = torch.ones(1 + max((int(s.classes.max()) for s in slices if len(s.classes)), default=0), device="cpu")
    mine = given.clone()
    mine[0] = 0.0
    return {device: mine.to(device) for device in {s.parameter.device for s in slices}}
