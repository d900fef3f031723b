"""Views of the user's code, carried out for the neurons that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from demp.graph.calls import CallPlan


def viewed(operand: Any, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], plan: CallPlan) -> Any:
    """A view of what is left: as long as the other sizes say, since an axis of the examples may be part of it."""
    flat = func in (Tensor.unflatten, torch.unflatten, "unflatten")
    sizes: list[Any] = list(view_sizes(func, args) or ())
    first = plan.sizes[0] - (int(args[1]) % plan.ndim if flat else 0)
    sizes[first + 1 : first + 1 + len(plan.expect[2:])] = plan.expect[2:]
    inferred = [at for at, size in enumerate(sizes) if isinstance(size, int) and size == -1]  # a proxy is not
    if first not in inferred:
        alone = flat or first == plan.axis  # else an axis of the examples may be part of it
        sizes[first] = plan.sizes[1] if inferred or alone or is_empty(operand) else -1
    if flat:
        return operand.unflatten(args[1], tuple(sizes))
    view = operand.view if func is Tensor.view or func == "view" else operand.reshape
    return view(*sizes)


def is_empty(operand: Any) -> bool:
    """A batch of nothing: no size can be inferred."""
    return isinstance(operand, Tensor) and operand.numel() == 0


def view_sizes(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The new sizes as they are written; None if they are not given as numbers by position."""
    rest = args[2:] if func in (Tensor.unflatten, torch.unflatten, "unflatten") else args[1:]
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        rest = tuple(rest[0])
    return None if not rest or isinstance(rest[0], (torch.dtype, str)) else tuple(rest)
