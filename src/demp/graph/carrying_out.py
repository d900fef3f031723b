"""How planned calls of the user's code are carried out for the neurons that are left."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from demp.graph.calls import INDEXING, KINDS, CallPlan, entries_of, entry_of, is_cut
from demp.graph.multihead import attended
from demp.graph.stream_norms import NORMALIZED
from demp.graph.view_calls import viewed

MAX_RUNS = 32
"""Positions that lie in more contiguous runs than this are taken by index."""


def kind_of(func: Any, args: tuple[Any, ...]) -> str | None:
    """The kind of a call; None if it is of no interest."""
    if func is resized:
        return args[4].kind
    kind = KINDS.get(func)
    if kind is None or not args or not isinstance(args[0], Tensor):
        return None
    if func in INDEXING and not any(is_cut(entry) for entry in entries_of(args[1])):
        return None
    return kind


def resized(operand: Any, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], plan: CallPlan) -> Any:
    """``func(operand, *args[1:], **kwargs)`` as planned; modes see it as one call."""
    if has_torch_function((operand,)):
        return handle_torch_function(resized, (operand,), operand, func, args, kwargs, plan)
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return carried_out(operand, func, args, kwargs, plan)
    if plan.kind != "view" and operand.shape[plan.axis] != plan.width:
        raise RuntimeError(
            f"a call of {getattr(func, '__name__', func)} was planned for {plan.width} neurons and got "
            f"{operand.shape[plan.axis]}: the model was changed behind demp's back, its forward took another path, or "
            "that axis also holds positions, and the inputs have another size than in the trace"
        )
    out = carried_out(operand, func, args, kwargs, plan)
    if plan.expect and tuple(out.shape[plan.expect[0] + 1 :][: len(plan.expect) - 2]) != plan.expect[2:]:
        raise RuntimeError(f"a view made {tuple(out.shape)} of the channels that are left, not {plan.expect[2:]}")
    return out


def carried_out(operand: Any, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], plan: CallPlan) -> Any:
    """The same in plain operations; proxies pass, too."""
    if plan.kind == "heads":
        return attended((operand, *args[1:]), kwargs)
    if plan.kind in NORMALIZED:
        return NORMALIZED[plan.kind](operand, args, kwargs, plan.width, plan.scale)
    if plan.kind == "split":
        return torch.split(operand, list(plan.sizes), plan.axis)
    if plan.kind == "slice":
        return sliced(operand, args, plan) if func in INDEXING else torch.narrow(operand, plan.axis, *plan.sizes)
    if plan.kind == "view" and not plan.grid:
        return viewed(operand, func, args, kwargs, plan) if plan.sizes else func(operand, *args[1:], **kwargs)
    if plan.expand:
        operand = taken(operand, plan.axis, plan.expand)
    if plan.grid:
        return regrouped(operand, plan)
    out = func(operand, *args[1:], **kwargs)
    if plan.kind == "mean" and plan.width == 0:
        out = torch.zeros_like(out)
    elif plan.scale != 1.0:
        out = out * plan.scale
    return taken(out, plan.axis, plan.select) if plan.select else out


def sliced(operand: Any, args: tuple[Any, ...], plan: CallPlan) -> Any:
    """An index whose slice along one axis is another one."""
    entries, at = list(entries_of(args[1])), entry_of(entries_of(args[1]), plan.axis, plan.ndim)
    assert at is not None
    entries[at] = slice(plan.sizes[0], plan.sizes[0] + plan.sizes[1])
    return operand[tuple(entries)]


def regrouped(operand: Any, plan: CallPlan) -> Any:
    """Channels into a grid, or a grid into channels of which some are kept."""
    if not plan.select:
        return torch.unflatten(operand, plan.axis, plan.grid)
    return taken(torch.flatten(operand, plan.axis, plan.axis + len(plan.grid) - 1), plan.axis, plan.select)


def taken(tensor: Tensor, axis: int, where: Sequence[int]) -> Tensor:
    """Positions along an axis, in this order; zeros at -1."""
    runs = runs_of(where)
    if runs == [(0, tensor.shape[axis])]:
        return tensor
    if len(runs) > MAX_RUNS:
        index = torch.tensor(where, device=tensor.device)
        out = tensor.index_select(axis, index.clamp(min=0))
        line = [-1 if d == axis % tensor.dim() else 1 for d in range(tensor.dim())]
        return out if min(where) >= 0 else out.masked_fill((index < 0).view(line), 0.0)
    pieces = []
    for start, length in runs:
        if start >= 0:
            pieces.append(tensor.narrow(axis, start, length))
        else:
            shape = list(tensor.shape)
            shape[axis] = length
            pieces.append(tensor.new_zeros(shape))
    return torch.cat(pieces, axis)


def runs_of(where: Sequence[int]) -> list[tuple[int, int]]:
    """Contiguous runs: first position (-1: zeros), and how many. In a loop that torch.compile can follow."""
    runs: list[tuple[int, int]] = []
    for position in where:
        start, length = runs.pop() if runs else (position, 0)
        if length and position != (start if start < 0 else start + length):
            runs.append((start, length))
            start, length = position, 0
        runs.append((start, length + 1))
    return runs
