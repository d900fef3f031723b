"""Methods that a forward calls, called by themselves: what a cut has planned in them would run as it is written."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from demp.errors import UsageError
from demp.graph.call_mode import fits
from demp.graph.calls import calls_of
from demp.graph.carrying_out import kind_of, resized
from demp.graph.places import running
from demp.graph.sums import JoinPlan, is_sum


def helpers(kind: type[nn.Module]) -> dict[str, FunctionType]:
    """The methods of the user's own that a forward may call, directly or through one another."""
    known: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(nn.Module)]):
        known |= {name: each for name, each in vars(base).items() if isinstance(each, FunctionType)}
    forward = inspect.unwrap(kind.forward)
    found, todo = {}, [forward.__code__] if isinstance(forward, FunctionType) else []
    while todo:
        for name in names_in(todo.pop()):
            if name in known and name not in found and not hasattr(nn.Module, name):
                found[name] = known[name]
                todo.append(known[name].__code__)
    return found


def names_in(code: CodeType) -> Iterator[str]:
    """Every name that a function, or one inside it, names."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


def guarded(name: str, method: FunctionType, joins_of: Callable[[nn.Module], Mapping[int, JoinPlan]]) -> FunctionType:
    """A method that may be called inside the forward, or where it meets nothing that is planned."""

    @functools.wraps(method, updated=())
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or running(self):
            return method(self, *args, **kwargs)
        with AloneMode(self, name, joins_of(self)):
            return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


class AloneMode(TorchFunctionMode):
    """Refuses what is planned in the forward of a module, while one of its methods runs without it."""

    def __init__(self, module: nn.Module, name: str, joins: Mapping[int, JoinPlan]) -> None:
        super().__init__()
        self.module, self.name, self.joins = module, name, joins
        self.calls = calls_of(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise at a sum or call that looks like a planned one; let everything else pass."""
        kind = None if func is resized else kind_of(func, args)
        planned = kind is not None and any(fits(plan, kind, args[0]) for plan in self.calls.values())
        planned = planned or (
            is_sum(func, args, kwargs) and any(sum_fits(plan, *args[:2]) for plan in self.joins.values())
        )
        if planned and not in_child():
            raise UsageError(
                f"{self.name} of {type(self.module).__name__} was called by itself. Since a cut some of its sums, or "
                "parts of tensors, are carried out as planned, in the forward of the module alone: call the module, or "
                "prune it with joins=False"
            )
        return func(*args, **(kwargs or {}))


def sum_fits(plan: JoinPlan, a: Any, b: Any) -> bool:
    """May this be the planned sum?"""
    branch, stream = (b, a) if plan.stream == 0 else (a, b)
    return min(a.dim(), b.dim()) > plan.axis and (branch.shape[plan.axis], stream.shape[plan.axis]) == plan.widths


def in_child() -> bool:
    """Does a module, or its hook, run between the method and the call of now? Then the call is not the method's own."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals is not globals():
        if frame.f_code is nn.Module._call_impl.__code__:
            return True
        frame = frame.f_back
    return False
