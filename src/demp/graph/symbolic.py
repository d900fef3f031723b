"""`torch.fx` meets a residual sum of two widths: the traced graph gets it in operations that every tool reads."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

from torch import Tensor
from torch.fx import Proxy
from torch.fx.proxy import TracerBase
from torch.utils._pytree import tree_leaves

from demp.errors import UsageError
from demp.graph.calls import KINDS, CallPlan, entries_of, is_cut
from demp.graph.calls import METHODS as CALL_METHODS
from demp.graph.carrying_out import carried_out
from demp.graph.sums import IN_PLACE, SUMS, JoinPlan, explicit

METHODS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
METHODS_IN_PLACE = frozenset({"add_", "__iadd__"})


def tracer_of(args: Any, kwargs: Any) -> TracerBase | None:
    """The tracer that follows a call with these arguments symbolically; None if there is none."""
    return next((leaf.tracer for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Proxy)), None)


class Interception(ABC):
    """While it is entered, ``_intercept`` stands before the tracer's ``create_proxy``."""

    def __init__(self, tracer: TracerBase) -> None:
        self.tracer, self._paused = tracer, False

    def __enter__(self) -> Self:
        """Replace the tracer's ``create_proxy`` with ``_intercept`` until exit."""
        self._create = self.tracer.create_proxy
        self._before = vars(self.tracer).get("create_proxy")
        vars(self.tracer)["create_proxy"] = self._intercept
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the ``create_proxy`` that the tracer had before."""
        if self._before is None:
            del vars(self.tracer)["create_proxy"]
        else:
            vars(self.tracer)["create_proxy"] = self._before

    @abstractmethod
    def _intercept(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any: ...


class SymbolicCalls(Interception):
    """While it is entered, planned calls of one module (``graph.calls``) go into the traced graph as planned.

    They are counted to the end of the call, as sums are.
    """

    def __init__(self, plans: Mapping[str, CallPlan], tracer: TracerBase, name: str) -> None:
        super().__init__(tracer)
        self.plans, self.name = plans, name
        self.counts: dict[str, int] = {}
        odd = next((plan.kind for plan in plans.values() if plan.expand), None)
        if odd is not None:
            raise UsageError(
                f"torch.fx cannot take up a call of {name} ({odd}) that runs along the channels since the cut; use "
                "torch.export or torch.jit.trace, which run the forward"
            )

    def _intercept(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any:
        """Put a planned call into the graph; let everything else pass."""
        known = None if self._paused else symbolic_kind(kind, target, args)
        number = self.counts.get(known or "", 0)
        self.counts[known or ""] = number + 1
        plan = None if known is None else self.plans.get(f"{known}:{number}")
        if plan is None:
            return self._create(kind, target, args, kwargs, *others, **named)
        self._paused = True
        try:
            by_name = isinstance(target, str) and plan.kind == "mean"
            func = partial(method, target) if by_name else target
            return carried_out(args[0], func, args, kwargs, plan)
        finally:
            self._paused = False

    def finish(self) -> None:
        """After the call: refuse a graph whose calls may be others than those of the forward."""
        for plan in self.plans.values():
            if plan.calls != self.counts.get(plan.kind, 0):
                raise UsageError(
                    f"torch.fx cannot tell which call of {self.name} ({plan.kind}) the cut has planned: its symbolic "
                    f"forward has {self.counts.get(plan.kind, 0)} of them, the forward itself {plan.calls}. Use "
                    "torch.export or torch.jit.trace, which run the forward"
                )


def method(name: str, operand: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the method of this name on a tensor, or on what stands for one."""
    return getattr(operand, name)(*args, **kwargs)


def symbolic_kind(kind: str, target: Any, args: Any) -> str | None:
    """The kind of the call that a node stands for."""
    if kind == "call_method":
        return CALL_METHODS.get(target)
    if kind != "call_function" or not args or not isinstance(args[0], Proxy):
        return None
    if target is operator.getitem:
        return "slice" if any(is_cut(entry) for entry in entries_of(args[1])) else None
    return KINDS.get(target)


class SymbolicSums(Interception):
    """While it is entered, planned sums of one module go into the traced graph as slices and plain sums.

    A proxy does not know whether it stands for a tensor, so that a sum of two proxies may be one of two sizes. Sums are
    therefore counted to the end of the call: only if there are as many as in the forward itself are they the same ones.
    """

    def __init__(self, plans: Mapping[int, JoinPlan], tracer: TracerBase, name: str) -> None:
        super().__init__(tracer)
        self.plans, self.name, self.count = plans, name, 0

    def _intercept(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> Any:
        """Put a planned sum into the graph as slices; let everything else pass."""
        if self._paused or not is_symbolic_sum(kind, target, args, kwargs):
            return self._create(kind, target, args, kwargs, *others, **named)
        plan = self.plans.get(self.count)
        self.count += 1
        if plan is None:
            return self._create(kind, target, args, kwargs, *others, **named)
        branch, stream = args[1 - plan.stream], args[plan.stream]
        self._paused = True
        try:
            return explicit(branch, stream, plan, target in IN_PLACE or target in METHODS_IN_PLACE)
        finally:
            self._paused = False

    def finish(self) -> None:
        """After the call: refuse a graph whose sums may be others than those of the forward."""
        expected = {plan.sums for plan in self.plans.values()}
        if expected and expected != {self.count}:
            raise UsageError(
                f"torch.fx cannot tell which sum of {self.name} adds two widths since the cut: its symbolic forward "
                f"has {self.count} sums, the forward itself {expected.pop() or 'an unknown number'}. Trace "
                "demp.plain(model), which has plain sums alone, or use torch.export"
            )


def is_symbolic_sum(kind: str, target: Any, args: Any, kwargs: Any) -> bool:
    """May this node be the sum of two tensors that carry channels?"""
    known = target in SUMS if kind == "call_function" else kind == "call_method" and target in METHODS
    return known and not kwargs and len(args) == 2 and all(map(may_carry_channels, args))


def may_carry_channels(value: Any) -> bool:
    """Is this a proxy, or a tensor of more than one axis?"""
    return isinstance(value, Proxy) or (isinstance(value, Tensor) and value.dim() > 1)
