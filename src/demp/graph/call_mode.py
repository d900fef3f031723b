"""How planned calls are found among all calls of a forward, and how a trace numbers them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from demp.graph.calls import CallPlan, CallSeat
from demp.graph.carrying_out import kind_of, resized
from demp.graph.lookup import Lookup, Turn
from demp.graph.places import own, traced
from demp.graph.sums import SUM, require_as_traced
from demp.graph.view_calls import planned_sizes, view_sizes

OPTIONAL = ("view", "flatten")
"""Kinds that code leaves out where there is nothing to do (keys are repeated for no head): fewer are no error."""


def fits(plan: CallPlan, kind: str, operand: Any) -> bool:
    """May this be the planned call?"""
    return kind == plan.kind and operand.dim() == plan.ndim and operand.shape[plan.axis] == plan.width


class CallMode(TorchFunctionMode):
    """Carries out the planned calls of one call of a module.

    They are known by their place in its code. Where there are no places, by their number among all calls of their kind
    inside the module, which then must be as traced.
    """

    def __init__(self, plans: Mapping[str, CallPlan], module: nn.Module) -> None:
        super().__init__()
        self.plans, self.module = plans, module
        self.lookup = Lookup(plans, module)
        self.counts: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a planned call; let everything else pass."""
        kwargs = kwargs or {}
        kind = kind_of(func, args)
        if kind is None:
            return func(*args, **kwargs)
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        if func is resized:
            return func(*args, **kwargs)
        place = None
        if self.lookup.by_place and not torch.compiler.is_compiling():
            place = own(self.module)
            if place is None:
                return func(*args, **kwargs)
        key = self.lookup.find(place, f"{kind}:{number}", lambda plan: fits(plan, kind, args[0]), f"a call ({kind})")
        return func(*args, **kwargs) if key is None else resized(args[0], func, args, kwargs, self.plans[key])

    def finish(self) -> None:
        """After the call: raise if a planned call may have run at another place, or others than in the trace."""
        lookup = self.lookup
        lookup.check_turns("calls")
        for key, plan in self.plans.items():
            if lookup.by_place and (key in lookup.done or key not in lookup.unknown):
                continue
            if lookup.by_place or int(key.partition(":")[2]) >= self.counts.get(plan.kind, 0):
                raise RuntimeError(
                    f"a call ({plan.kind}) that a cut planned did not run in the forward of "
                    f"{type(self.module).__name__}: this time it took another path than the one that was traced. Prune "
                    "such a model with joins=False; to rewrite modules after pruning, do so in demp.plain(model)"
                )
            traced, made = plan.training if self.module.training else (plan.calls,), self.counts[plan.kind]
            if plan.kind not in OPTIONAL or made > max(traced, default=0):
                require_as_traced(self.module, f"calls ({plan.kind})", made, traced)


class CallCounter:
    """Numbers the calls of each kind inside every module that runs; with ``ran``, notes where each of them stands."""

    def __init__(self, stack: Sequence[str], ran: Mapping[str, int] | None) -> None:
        self._stack, self._ran, self.counts = stack, ran, Counter[tuple[str, str]]()
        self._turns = Counter[Turn]()
        self._places: dict[CallSeat, tuple[Turn, int]] = {}

    def seat(self, kind: str) -> CallSeat:
        """The seat of the call that runs now."""
        path = self._stack[-1] if self._stack else ""
        for each in set(self._stack) or {path}:
            self.counts[each, kind] += 1
        seat = path, kind, self.counts[path, kind] - 1
        self.note(seat)
        return seat

    def note(self, seat: CallSeat) -> None:
        """Where does what runs now at this seat stand?"""
        if self._ran is not None:
            turn = Turn(seat[0], self._ran.get(seat[0], 0), seat[1] == SUM, traced())
            self._places[seat] = turn, self._turns[turn]
            self._turns[turn] += 1

    def places(self) -> dict[CallSeat, str]:
        """Where each call stands: see `CallPlan`."""
        return {seat: f"{turn.text}#{at}/{self._turns[turn]}" for seat, (turn, at) in self._places.items()}


class WrittenViews(TorchFunctionMode):
    """Of the planned views in a rehearsal: which would have made what is left without a plan?

    They have -1 there, or a number that the cut carries to the attribute that they take it from.
    """

    def __init__(self) -> None:
        super().__init__()
        self._as_written: dict[tuple[str, ...], bool] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compare the sizes of a planned view; let everything pass."""
        if func is resized:
            operand, view, given, _, plan = args
            if plan.kind == "view" and plan.sizes and not plan.grid and plan.sizes[1] != plan.dense:
                same = planned_sizes(operand, view, given, plan) == list(view_sizes(view, given) or ())
                self._as_written[plan.places] = same and self._as_written.get(plan.places, True)
        return func(*args, **(kwargs or {}))

    def following(self) -> set[tuple[str, ...]]:
        """Places of the views that did so each time (see `CallPlan`)."""
        return {places for places, same in self._as_written.items() if same and places}
