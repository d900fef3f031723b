"""Residual sums of two widths: the add of a block whose output kept other channels than the stream that enters it.

A module that owns such a sum runs its own forward under a mode that carries out the sum as planned. The module stays
the same object; its class becomes a subclass of its own, as with a parametrization.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

IN_PLACE = frozenset({operator.iadd, Tensor.__iadd__, Tensor.add_})
SUMS = frozenset({operator.add, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}) | IN_PLACE
"""How user code spells ``a + b``."""
ATTRIBUTE = "demp_joins"
MAX_RUNS = 32
"""A join of more contiguous runs than this adds by index. See docs/numbers.md: up to there slices were never slower."""


@dataclass(frozen=True)
class JoinPlan:
    """How one sum is carried out: the stream's channels are added to some of the branch's.

    ``runs`` are (first channel of the branch, first channel of the stream, channels): contiguous on both sides.
    """

    stream: int
    """Position of the stream among the two operands."""
    axis: int
    widths: tuple[int, int]
    """Channels of the branch (and of the sum), channels of the stream."""
    runs: tuple[tuple[int, int, int], ...]

    @property
    def plain(self) -> bool:
        """Do both sides hold the same channels in the same order?"""
        return self.widths[0] == self.widths[1] and self.runs == ((0, 0, self.widths[0]),)

    @property
    def kind(self) -> str:
        """``plain``, ``slice`` (a few contiguous runs) or ``index``."""
        return "plain" if self.plain else "slice" if len(self.runs) <= MAX_RUNS else "index"

    def indices(self) -> tuple[Tensor, Tensor]:
        """Channels of the branch and of the stream that meet."""
        pairs = [(to + i, at + i) for to, at, length in self.runs for i in range(length)]
        target, source = zip(*pairs, strict=True) if pairs else ((), ())
        return (
            torch.tensor(target, dtype=torch.long, device="cpu"),
            torch.tensor(source, dtype=torch.long, device="cpu"),
        )


def is_sum(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> bool:
    """Is this call the plain sum of two tensors that may carry channels? Only such calls are counted."""
    return (
        (func in SUMS or func is join)
        and not (kwargs and func is not join)
        and len(args) >= 2
        and (len(args) == 2 or func is join)
        and isinstance(args[0], Tensor)
        and isinstance(args[1], Tensor)
        and args[0].dim() > 1
        and args[1].dim() > 1
    )


def join(a: Tensor, b: Tensor, plan: JoinPlan, in_place: bool, indices: tuple[Tensor, Tensor] | None) -> Tensor:
    """``a + b`` where one of the two is a stream of other channels: see `JoinPlan`."""
    if has_torch_function((a, b)):
        return handle_torch_function(join, (a, b), a, b, plan, in_place, indices)
    branch, stream = (b, a) if plan.stream == 0 else (a, b)
    axis = plan.axis
    if (branch.shape[axis], stream.shape[axis]) != plan.widths:
        raise RuntimeError(
            f"a residual sum was planned for {plan.widths[0]} and {plan.widths[1]} channels and got "
            f"{branch.shape[axis]} and {stream.shape[axis]}: the model was changed behind demp's back"
        )
    whole = len(plan.runs) == 1 and plan.runs[0][2] == plan.widths[0]
    if whole and not in_place:
        return branch + stream.narrow(axis, plan.runs[0][1], plan.widths[0])
    if indices is None and not torch.compiler.is_compiling():
        return Slices.apply(branch, stream, plan, in_place)
    out = branch if in_place else branch.to(torch.promote_types(branch.dtype, stream.dtype), copy=True)
    if indices is None:
        return add_runs(out, stream, plan)
    target, source = indices
    met = stream.index_select(axis, source)
    if met.dtype == out.dtype:
        return out.index_add_(axis, target, met)
    return out.index_copy_(axis, target, (out.index_select(axis, target) + met).to(out.dtype))


def add_runs(branch: Tensor, stream: Tensor, plan: JoinPlan) -> Tensor:
    """Add the stream's channels into the branch, run by run."""
    for to, at, length in plan.runs:
        branch.narrow(plan.axis, to, length).add_(stream.narrow(plan.axis, at, length))
    return branch


class Slices(torch.autograd.Function):
    """A join by slices. Autograd on its own would copy the whole gradient once per run."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, stream: Tensor, plan: JoinPlan, in_place: bool) -> Tensor:
        """The sum; written into the branch if it is in place."""
        ctx.plan, ctx.dtypes, ctx.shape = plan, (branch.dtype, stream.dtype), stream.shape
        if in_place:
            ctx.mark_dirty(branch)
            return add_runs(branch, stream, plan)
        wide = torch.promote_types(branch.dtype, stream.dtype)
        return add_runs(branch.to(wide, copy=True), stream, plan)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The branch takes the gradient as it is, the stream the runs that met."""
        (gradient,), plan = gradients, ctx.plan
        back = None
        if ctx.needs_input_grad[1]:
            nhwc = gradient.dim() == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if nhwc else torch.contiguous_format
            back = torch.empty(ctx.shape, dtype=ctx.dtypes[1], device=gradient.device, memory_format=layout).zero_()
            for to, at, length in plan.runs:
                back.narrow(plan.axis, at, length).copy_(gradient.narrow(plan.axis, to, length))
        return gradient.to(ctx.dtypes[0]), back, None, None


class JoinMode(TorchFunctionMode):
    """Counts the sums of one call of a module, and carries out the planned ones."""

    def __init__(self, plans: Mapping[int, JoinPlan], module: nn.Module) -> None:
        super().__init__()
        self.plans, self.module, self.count = plans, module, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a planned sum; let everything else pass."""
        if not is_sum(func, args, kwargs):
            return func(*args, **(kwargs or {}))
        plan = self.plans.get(self.count)
        self.count += 1
        if plan is None or func is join:
            return func(*args, **(kwargs or {}))
        stored = [getattr(self.module, name, None) for name in index_names(self.count - 1)]
        indices = (stored[0], stored[1]) if stored[0] is not None and stored[1] is not None else None
        return join(args[0], args[1], plan, func in IN_PLACE, indices)


def joining(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``kind`` whose forward joins; one for all its modules, and gone with the last of them."""
    for made in kind.__subclasses__():  # which Python holds weakly
        if plain_kind(made) is kind:
            return made

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with JoinMode(getattr(self, ATTRIBUTE, {}), self):
            return kind.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return rebuild, (kind,), self.__getstate__()

    names = {"forward": forward, "__reduce_ex__": reduce, "__module__": kind.__module__, "__doc__": kind.__doc__}
    made = type(kind.__name__, (kind,), names | {"demp_plain": kind})
    made.__qualname__ = kind.__qualname__
    return made


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
    """Buffers that hold the indices of a join of many runs: channels of the branch, channels of the stream."""
    return f"demp_target_{number}", f"demp_source_{number}"


def set_joins(module: nn.Module, plans: Mapping[int, JoinPlan], *, by_index: bool = True) -> None:
    """Plan the sums of one module; with no plans it becomes its plain self again."""
    for number in joins_of(module):
        for name in index_names(number):
            if name in module._buffers:
                delattr(module, name)
    plans = {number: plan for number, plan in plans.items() if not plan.plain}
    kind = type(module)
    if plans and not any(plain_kind(base) for base in kind.__mro__):
        object.__setattr__(module, "__class__", joining(kind))  # a module may refuse to be changed
    if not plans and (plain := plain_kind(kind)) is not None:
        object.__setattr__(module, "__class__", plain)
    if not plans:
        module.__dict__.pop(ATTRIBUTE, None)
        return
    module.__dict__[ATTRIBUTE] = plans
    device = next((t.device for t in (*module.parameters(), *module.buffers())), None)
    for number, plan in plans.items():
        if plan.kind == "index" and by_index:
            for name, index in zip(index_names(number), plan.indices(), strict=True):
                module.register_buffer(name, index.to(device), persistent=False)


def model_joins(model: nn.Module) -> dict[str, dict[int, JoinPlan]]:
    """Module path -> planned sums, over the whole model."""
    return {name: plans for name, module in model.named_modules() if (plans := joins_of(module))}


def joins_to_plain(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The planned sums of a model, JSON-ready."""
    return {name: {str(n): asdict(plan) for n, plan in plans.items()} for name, plans in model_joins(model).items()}


def joins_from_plain(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, JoinPlan]]:
    """The inverse of `joins_to_plain`."""

    def plan(values: Mapping[str, Any]) -> JoinPlan:
        runs = tuple((to, at, length) for to, at, length in values["runs"])
        return JoinPlan(values["stream"], values["axis"], (values["widths"][0], values["widths"][1]), runs)

    return {name: {int(n): plan(values) for n, values in plans.items()} for name, plans in plain.items()}


@contextmanager
def joined(model: nn.Module, plans: Mapping[str, Mapping[int, JoinPlan]]) -> Iterator[None]:
    """The model with these joins inside, on any device; as before after."""
    with ExitStack() as stack:
        for name, chosen in plans.items():
            module = model.get_submodule(name)
            stack.callback(set_joins, module, joins_of(module))
            set_joins(module, chosen, by_index=False)
        yield


Seat = tuple[str, int]
"""Path of the module that owns a sum, and the sum's number in one call of it."""
OnSum = Callable[[Seat, Any, tuple[Any, ...]], Tensor | None]


class SumWatch(TorchFunctionMode):
    """Calls ``on_sum(seat, function, arguments)`` at every sum of a forward; what it returns is the sum.

    ``stack`` holds the paths of the modules that run (see ``graph.forward.module_stack``); ``nested`` collects modules
    inside which other modules sum: their own sums cannot be told apart by counting.
    """

    def __init__(self, stack: list[str], on_sum: OnSum) -> None:
        super().__init__()
        self.stack, self.on_sum = stack, on_sum
        self.counts: dict[str, int] = {}
        self.nested: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Report a sum; let everything else pass."""
        if not is_sum(func, args, kwargs):
            return func(*args, **(kwargs or {}))
        path = self.stack[-1] if self.stack else ""
        number = self.counts.get(path, 0)
        self.counts[path] = number + 1
        self.nested.update(self.stack[:-1])
        result = self.on_sum((path, number), func, args)
        return func(*args, **(kwargs or {})) if result is None else result
