"""Views of the user's code, carried out for the neurons that are left."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from demp.graph.calls import CallPlan

UNFLATTEN = (Tensor.unflatten, torch.unflatten, "unflatten")


def viewed(operand: Any, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], plan: CallPlan) -> Any:
    """A view of what is left."""
    sizes = planned_sizes(operand, func, args, plan)
    if func in UNFLATTEN:
        return operand.unflatten(args[1], tuple(sizes))
    view = operand.view if func is Tensor.view or func == "view" else operand.reshape
    return view(*sizes)


def planned_sizes(operand: Any, func: Any, args: tuple[Any, ...], plan: CallPlan) -> list[Any]:
    """As long as the other sizes say, since an axis of the examples may be part of it."""
    sizes: list[Any] = list(view_sizes(func, args) or ())
    skipped = int(args[1]) % plan.ndim if func in UNFLATTEN else 0
    first = plan.sizes[0] - skipped
    sizes[first + 1 : first + 1 + len(plan.expect[2:])] = plan.expect[2:]
    if not is_inferred(sizes[first]):
        sizes[first] = length(operand, sizes, first, skipped, plan)
    return sizes


def is_inferred(size: Any) -> bool:
    """Does torch find this size? A proxy is none."""
    return isinstance(size, int) and size == -1


def length(operand: Any, sizes: Sequence[Any], first: int, skipped: int, plan: CallPlan) -> Any:
    """How long the new axis of a view is: what the axes that become it and its neighbours hold, over those neighbours.

    So it is right for any number of examples, which may be merged with the neurons.
    """
    if not plan.block:  # a file that an earlier version wrote
        return plan.sizes[1]
    start, many, at, made, doubtful = plan.block
    last = at - skipped + made - 1
    lengths = [operand.shape[d] for d in range(start, start + many)]
    others = [sizes[d] for d in range(at - skipped, last + 1) if d != first]
    if start < plan.axis and first == last and others and is_inferred(others[-1]):  # torch finds what comes before them
        lengths, others = [plan.width, *lengths[plan.axis - start + 1 :]], others[:-1]
    if any(is_inferred(size) or (isinstance(size, int) and size == 0) for size in others):
        return plan.sizes[1]  # the examples are one of the others, or there are none
    found = math.prod(lengths) // math.prod(others)
    written = sizes[first]
    if (
        doubtful
        and type(written) is type(found) is int
        and written * plan.sizes[1]
        not in (
            found * plan.sizes[1],
            found * plan.dense,
        )
    ):
        raise RuntimeError(
            f"a view to {written} along axis {first} was planned for {found}: in the examples that were traced an axis "
            "of length 1 hid that the view merges it. Trace with two examples, or prune with joins=False"
        )
    return found


def view_sizes(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The new sizes as they are written; None if they are not given as numbers by position."""
    rest = args[2:] if func in UNFLATTEN else args[1:]
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        rest = tuple(rest[0])
    return None if not rest or isinstance(rest[0], (torch.dtype, str)) else tuple(rest)
