"""What a rule gets: one ATen operation that has run, or one call of the user's code that runs now."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demp.graph.calls import CallPlan, CallSeat


@dataclass(frozen=True)
class Call:
    """One ATen operation that has run: its name, arguments, output."""

    name: str
    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def dims(self, value: Any, ndim: int) -> list[int]:
        """Dimension arguments as non-negative integers; None means all of them."""
        if value is None or value == []:
            return list(range(ndim))
        return [d % ndim for d in ([value] if isinstance(value, int) else value)]


class UserCall:
    """A call of the user's code that runs now."""

    def __init__(self, seat: CallSeat, func: Any, args: tuple[Any, ...], plan: CallPlan | None) -> None:
        self.seat, self.func, self.args, self.plan = seat, func, args, plan

    @property
    def kind(self) -> str:
        """Return the kind of the call, for example ``sum`` or ``mean``."""
        return self.seat[1]

    def on(self, tensor: Tensor) -> bool:
        """Is this tensor the first argument of the call?"""
        return bool(self.args) and self.args[0] is tensor
