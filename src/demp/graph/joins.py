"""Residual sums of two widths: the add of a block whose output kept other channels than the stream that enters it.

A module that owns such a sum runs its own forward under a mode that carries out the sum as planned. The module stays
the same object; its class becomes a subclass of its own, as with a parametrization.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from demp.errors import UsageError
from demp.graph import calls
from demp.graph.alone import guarded, helpers
from demp.graph.call_mode import CallCounter, CallMode
from demp.graph.carrying_out import kind_of
from demp.graph.lookup import Lookup, Seats
from demp.graph.places import own
from demp.graph.sums import IN_PLACE, SUM, JoinPlan, is_sum, join, require_as_traced
from demp.graph.symbolic import SymbolicCalls, SymbolicSums, tracer_of

ATTRIBUTE = "demp_joins"


class JoinMode(TorchFunctionMode):
    """Carries out the planned sums of one call of a module, which its own code makes.

    They are known by their place in its code, or by their number there, which then must be as traced. Modules inside it
    make none, or nothing is planned; what they or their hooks add later is none of its sums.
    """

    def __init__(self, plans: Mapping[int, JoinPlan], module: nn.Module) -> None:
        super().__init__()
        self.plans, self.module, self.count = plans, module, 0
        self.lookup = Lookup(plans, module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a planned sum; let everything else pass."""
        if not is_sum(func, args, kwargs):
            return func(*args, **(kwargs or {}))
        place = None
        if not torch.compiler.is_compiling():
            place = own(self.module)
            if place is None:
                return func(*args, **(kwargs or {}))
        self.count += 1
        if func is join:
            return func(*args, **(kwargs or {}))
        number = self.lookup.find(place, self.count - 1, lambda _: False, "a residual sum")
        if number is None:
            return func(*args, **(kwargs or {}))
        stored = [getattr(self.module, name, None) for name in index_names(number)]
        indices = (stored[0], stored[1]) if stored[0] is not None and stored[1] is not None else None
        return join(args[0], args[1], self.plans[number], func in IN_PLACE, indices)

    def finish(self) -> None:
        """After the call: raise if a planned sum did not run, or, by number, other sums did than in the trace.

        The channels that came out are then those of something else, which equal widths would hide.
        """
        lookup = self.lookup
        lookup.check_turns("sums")
        for plan in () if lookup.by_place else self.plans.values():
            require_as_traced(self.module, "sums", self.count, plan.training if self.module.training else (plan.sums,))
        if any((n not in lookup.done) if lookup.by_place else n >= self.count for n in self.plans):
            raise RuntimeError(
                f"a residual sum that a cut planned did not run in the forward of {type(self.module).__name__}: this "
                "time it took another path (stochastic depth, a switch, another mode than the model was traced in), "
                "and what came out has other channels than the next module reads. Prune such a model with joins=False; "
                "to fuse branches or rewrite blocks after pruning, do so in demp.plain(model), whose sums are ordinary"
            )


def joining(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``kind`` that carries out plans; one for all its modules, and deleted with the last of them."""
    for made in kind.__subclasses__():  # which Python holds weakly
        if plain_kind(made) is kind:
            return made

    @functools.wraps(kind.forward, updated=())
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return planned_forward(self, kind, args, kwargs)

    def script(self: Any) -> Any:
        raise cannot_be_scripted(self, kind)

    def reduce(self: Any, protocol: Any) -> Any:
        return rebuild, (kind,), self.__getstate__()

    def assign(self: Any, name: str, value: Any) -> None:
        if name == "forward" and getattr(value, "__func__", None) is kind.forward:  # as tools unwrap what they wrapped
            value = MethodType(forward, value.__self__)
        kind.__setattr__(self, name, value)

    alone = {name: guarded(name, method, joins_of) for name, method in helpers(kind).items()}
    names = alone | {"forward": forward, "__setattr__": assign, "__reduce_ex__": reduce, "demp_plain": kind}
    names["__prepare_scriptable__"] = script
    made = type(kind.__name__, (kind,), names | {"__module__": kind.__module__, "__doc__": kind.__doc__})
    made.__qualname__ = kind.__qualname__
    return made


def planned_forward(self: Any, kind: type[nn.Module], args: Any, kwargs: Any) -> Any:
    """The forward of ``kind`` with the module's planned calls and sums; `demp.graph.places` knows it by its name."""
    plans = getattr(self, ATTRIBUTE, {})
    planned = getattr(self, calls.ATTRIBUTE, {})
    tracer = None if torch.compiler.is_compiling() else tracer_of(args, kwargs)
    if not planned:
        return summing(self, kind, args, kwargs, plans, tracer)
    own = CallMode(planned, self) if tracer is None else SymbolicCalls(planned, tracer, kind.__name__)
    with own:
        out = summing(self, kind, args, kwargs, plans, tracer) if plans else kind.forward(self, *args, **kwargs)
    own.finish()
    return out


def summing(self: Any, kind: type[nn.Module], args: Any, kwargs: Any, plans: Any, tracer: Any) -> Any:
    """The forward of ``kind`` with its planned sums."""
    sums = JoinMode(plans, self) if tracer is None else SymbolicSums(plans, tracer, kind.__name__)
    with sums:
        out = kind.forward(self, *args, **kwargs)
    sums.finish()
    return out


def cannot_be_scripted(module: nn.Module, kind: type[nn.Module]) -> UsageError:
    """The error of ``torch.jit.script``, which would not see what is planned."""
    remedy = "Use" if calls.calls_of(module) else "Script demp.plain(model), which has plain sums alone, or use"
    return UsageError(
        f"torch.jit.script reads the source of {kind.__name__}, whose sums and parts of tensors have other widths "
        f"in the pruned module: the result would be wrong. {remedy} torch.jit.trace or torch.export, which run the "
        "forward"
    )


def rebuild(kind: type[nn.Module]) -> nn.Module:
    """An empty module of the joining subclass, for copies and pickles."""
    made = joining(kind)
    return made.__new__(made)


def plain_kind(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The user's class under a joining subclass; None if ``kind`` is none."""
    return kind.__dict__.get("demp_plain")


def joins_of(module: nn.Module) -> dict[int, JoinPlan]:
    """The planned sums of one module."""
    return dict(module.__dict__.get(ATTRIBUTE, {}))


def index_names(number: int) -> tuple[str, str]:
    """Buffers that hold the indices of a planned sum of many runs: channels of the branch, channels of the stream."""
    return f"demp_target_{number}", f"demp_source_{number}"


def set_joins(module: nn.Module, plans: Mapping[int, JoinPlan], *, by_index: bool = True) -> None:
    """Plan the sums of one module; with no plans it becomes its plain self again."""
    for number in joins_of(module):
        for name in index_names(number):
            if name in module._buffers:
                delattr(module, name)
    plans = {number: plan for number, plan in plans.items() if not plan.plain}
    put_plans(module, ATTRIBUTE, plans)
    if not plans:
        return
    device = next((t.device for t in (*module.parameters(), *module.buffers())), None)
    for number, plan in plans.items():
        if plan.kind == "index" and by_index:
            for name, index in zip(index_names(number), plan.indices(), strict=True):
                module.register_buffer(name, index.to(device), persistent=False)


def set_calls(module: nn.Module, plans: Mapping[str, calls.CallPlan]) -> None:
    """Plan the calls of one module that depend on the number of neurons."""
    put_plans(module, calls.ATTRIBUTE, dict(plans))


def put_plans(module: nn.Module, attribute: str, plans: Mapping[Any, Any]) -> None:
    """Let a module carry out its plans; without any it becomes its plain self again."""
    module.__dict__.pop(attribute, None)
    if plans:
        module.__dict__[attribute] = dict(plans)
    kind, planned = type(module), bool(joins_of(module) or calls.calls_of(module))
    if planned and not any(plain_kind(base) for base in kind.__mro__):
        object.__setattr__(module, "__class__", joining(kind))  # a module may refuse to be changed
    if not planned and (plain := plain_kind(kind)) is not None:
        object.__setattr__(module, "__class__", plain)


def model_joins(model: nn.Module) -> dict[str, dict[int, JoinPlan]]:
    """Module path -> planned sums, over the whole model."""
    return {name: plans for name, module in model.named_modules() if (plans := joins_of(module))}


def joins_to_plain(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The planned sums of a model, JSON-ready."""
    return {name: {str(n): asdict(plan) for n, plan in plans.items()} for name, plans in model_joins(model).items()}


def joins_from_plain(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, JoinPlan]]:
    """Rebuild the plans of sums from plain data; the inverse of `joins_to_plain`."""

    def plan(values: Mapping[str, Any]) -> JoinPlan:
        runs = tuple((to, at, length) for to, at, length in values["runs"])
        widths = (values["widths"][0], values["widths"][1])
        return JoinPlan(
            values["stream"],
            values["axis"],
            widths,
            runs,
            values.get("sums", 0),
            tuple(values.get("training", ())),
            tuple(values.get("places", ())),
        )

    return {name: {int(n): plan(values) for n, values in plans.items()} for name, plans in plain.items()}


@contextmanager
def joined(
    model: nn.Module,
    plans: Mapping[str, Mapping[int, JoinPlan]],
    planned: Mapping[str, Mapping[str, calls.CallPlan]] = MappingProxyType({}),
) -> Iterator[None]:
    """Inside, the model carries out these sums and calls, on any device; afterwards it is as before."""
    with ExitStack() as stack:
        for name, own in planned.items():
            module = model.get_submodule(name)
            stack.callback(set_calls, module, calls.calls_of(module))
            set_calls(module, own)
        for name, chosen in plans.items():
            module = model.get_submodule(name)
            stack.callback(set_joins, module, joins_of(module))
            set_joins(module, chosen, by_index=False)
        yield


SumSeat = tuple[str, int]
"""Path of the module that owns a sum, and the sum's number in one call of it."""
OnSum = Callable[[SumSeat, Any, tuple[Any, ...]], Tensor | None]
OnCall = Callable[[calls.CallSeat, Any, tuple[Any, ...], dict[str, Any]], Any]


class SumWatch(TorchFunctionMode):
    """Calls ``on_sum(seat, function, arguments)`` at every sum of a forward; what it returns is the sum.

    ``stack`` holds the paths of the modules that run (see ``graph.forward.module_stack``); ``nested`` collects modules
    inside which other modules sum: their own sums cannot be distinguished by counting. ``on_call(seat, function,
    arguments, keywords)`` runs each other call that depends on the number of neurons (``graph.calls``). With ``ran``,
    how often each module has run, places of both are noted. With ``seats`` those of a graph are known by their places.
    """

    def __init__(
        self,
        stack: list[str],
        on_sum: OnSum,
        on_call: OnCall | None = None,
        ran: Mapping[str, int] | None = None,
        seats: Seats | None = None,
    ) -> None:
        super().__init__()
        self.seats = seats
        self.stack, self.on_sum, self.on_call = stack, on_sum, on_call
        self.calls = CallCounter(stack, ran)
        self.counts: dict[str, int] = {}
        self.nested: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Report a sum; let everything else pass."""
        if not is_sum(func, args, kwargs):
            kind = None if self.on_call is None else kind_of(func, args)
            if kind is None or self.on_call is None:
                return func(*args, **(kwargs or {}))
            seat = self.calls.seat(kind)
            seat = seat if self.seats is None else self.seats.seat(seat, False)
            return func(*args, **(kwargs or {})) if seat is None else self.on_call(seat, func, args, kwargs or {})
        path = self.stack[-1] if self.stack else ""
        number = self.counts.get(path, 0)
        self.counts[path] = number + 1
        self.nested.update(self.stack[:-1])
        self.calls.note((path, SUM, number))
        seat: Any = (path, number)
        seat = seat if self.seats is None else self.seats.seat(seat, True)
        result = None if seat is None else self.on_sum(seat, func, args)
        return func(*args, **(kwargs or {})) if result is None else result
