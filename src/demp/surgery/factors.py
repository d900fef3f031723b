"""State of optimizers that is kept per axis of a parameter: factored second moments, and maxima (SM3)."""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adafactor, Optimizer

from demp.graph.random_state import random_kept
from demp.surgery.shrink import narrowed

Keep = Mapping[int, Tensor]
PAIRS = {
    "row_var": "col_var",
    "exp_avg_sq_row": "exp_avg_sq_col",
    "exp_avg_sq_r": "exp_avg_sq_c",
    "exp_avg_res_row": "exp_avg_res_col",
}
"""Two halves of a second moment, by their names in torch, in transformers, timm and CAME, in BigVision."""
OTHER = {**PAIRS, **{column: row for row, column in PAIRS.items()}}
"""What each half is divided by the mean of."""
MAXIMA = re.compile(r"accumulator_\d+")
"""SM3's: one per axis, with ones at all others."""


def is_per_axis(key: Any) -> bool:
    """Is it a name under which such state is kept?"""
    return isinstance(key, str) and (key in OTHER or MAXIMA.fullmatch(key) is not None)


def shrink_of(key: str, state: Mapping[Any, Any], shape: torch.Size, keep: Keep) -> partial[Tensor] | None:
    """How this piece of state of a parameter with ``shape`` follows it; None: it is not laid out as its name says."""
    value = state[key]
    if not isinstance(value, Tensor):
        return None
    if key not in OTHER:
        fits = value.dim() == len(shape) and all(n in (1, m) for n, m in zip(value.shape, shape, strict=True))
        left = {axis: stay for axis, stay in keep.items() if value.shape[axis : axis + 1] != (1,)}
        return partial(narrowed, keep=left) if fits else None
    other = state.get(OTHER[key])
    mean, own = mean_axis(value, shape, keep, row=key in PAIRS), mean_axis(other, shape, keep, row=key not in PAIRS)
    if other is None or mean is None or own is None or mean == own:
        return None
    return partial(narrowed_factor, other=other, keep=keep, axes=(own, mean), dims=len(shape))


def mean_axis(value: Any, shape: torch.Size, keep: Keep, *, row: bool) -> int | None:
    """Over which axis of the parameter this half is a mean; None: not known.

    Where lengths are equal it is the last axis that it may be for the rows, the one before for the columns.
    """
    if not isinstance(value, Tensor):
        return None
    kept = value.dim() == len(shape)
    without = [(*shape[:axis], *([1] if kept else []), *shape[axis + 1 :]) for axis in range(len(shape))]
    found = [axis for axis, one in enumerate(without) if one == tuple(value.shape)]
    if not found or (len(found) > 2 and found[0] == 0 and any(axis in keep for axis in found)):
        return None  # of three equal lengths some count from the front, and some from the back
    return found[-1] if row or len(found) == 1 else found[-2]


def narrowed_factor(value: Tensor, *, other: Tensor, keep: Keep, axes: tuple[int, int], dims: int) -> Tensor:
    """Half of a second moment ``rows * columns / mean(rows)``; ``axes``: the one that it has alone, that of its mean.

    Each half is a mean over the axis that the other one has. The share of that mean which the removed entries have,
    as the factors estimate it, is taken out, and the rest is divided by the entries that stay. The second moment of
    every entry that stays is then exactly what it was; where the removed ones never had a gradient, both halves are
    what a network born at these widths would hold. The step itself also depends on the norm and the size of the whole
    tensor (``eps[1]``, ``d``) and is that of the smaller tensor, not of a dense one with dead entries.
    """
    own, mean = axes
    if value.dim() < dims:
        halves = value.unsqueeze(mean), other.unsqueeze(own)
        return narrowed_factor(halves[0], other=halves[1], keep=keep, axes=axes, dims=dims).squeeze(mean)
    small = narrowed(value, {axis: indices for axis, indices in keep.items() if axis != mean})
    if mean not in keep:
        return small
    sliced = {axis: indices for axis, indices in keep.items() if axis not in (own, mean)}
    total = narrowed(other, sliced)
    left = narrowed(total, {mean: keep[mean]})
    share = left.sum(mean, keepdim=True) / total.sum(mean, keepdim=True)
    return small * share.nan_to_num(1.0) * (total.shape[mean] / left.shape[mean])


def lays_out_anew(
    optimizer: Optimizer, parameter: Tensor, shrinks: Mapping[str, Callable[[Any], Tensor]], keep: Keep
) -> bool:
    """Would the optimizer keep these pieces of its state in other shapes for a parameter of the new size?

    timm's choose by the size what they factor. A first step of the same optimizer on zeros of that size says so.
    """
    shape = [len(keep[axis]) if axis in keep else n for axis, n in enumerate(parameter.shape)]
    if isinstance(optimizer, Adafactor) or not shrinks or shape == list(parameter.shape):
        return False
    zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    zeros.grad = torch.zeros_like(zeros)
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    fresh = {"state": defaultdict(dict), "param_groups": [{**group, "params": [zeros]}]}
    hooks = {name: OrderedDict() for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")}
    other = object.__new__(type(optimizer))
    vars(other).update({**vars(optimizer), **fresh, **hooks})
    vars(other).pop("step", None)
    try:
        with random_kept([zeros.device.index or 0] if zeros.is_cuda else []):
            other.step()
    except Exception:  # an optimizer of the user's own that takes no such step: its state begins anew
        return True
    state, old = other.state.get(zeros, {}), optimizer.state[parameter]
    return any(getattr(state.get(key), "shape", None) != shrink(old[key]).shape for key, shrink in shrinks.items())
