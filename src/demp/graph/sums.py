"""One residual sum of two widths: how it is planned, and the ways to carry it out."""

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

IN_PLACE = frozenset({operator.iadd, Tensor.__iadd__, Tensor.add_})
SUMS = frozenset({operator.add, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}) | IN_PLACE
"""How user code spells ``a + b``."""
SUM = "add"
"""Kind of a sum among the seats whose places a trace notes."""
MAX_RUNS = 32
"""A planned sum of more contiguous runs adds by index; up to there slices were never slower (docs/numbers.md)."""


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
    sums: int = 0
    """Sums in one call of the module; 0 where a file of an earlier version does not say."""
    training: tuple[int, ...] = ()
    """The same of each traced call in training mode; empty: not known."""
    places: tuple[str, ...] = ()
    """Where it stands (``graph.places``) in the traced forwards, as ``place#turn/turns``; empty: not known."""

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


def require_as_traced(module: nn.Module, what: str, made: int, traced: Collection[int]) -> None:
    """Raise if a forward has made another number of sums or calls than any traced one; 0 or none: not known."""
    if any(traced) and made not in traced:
        raise RuntimeError(
            f"the forward of {type(module).__name__} has made {made} {what}, and {min(traced)} when it was traced (an "
            "argument that is given at one time alone, a hook, a part put in later): those that a cut "
            "planned cannot be told from the others. Trace it as it is used, or prune it with joins=False; to rewrite "
            "modules after pruning, do so in demp.plain(model)"
        )


def raise_if_checkpointed(module: nn.Module, what: str) -> None:
    """Raise: the backward would run again, as it is written, what a cut has planned.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        f"{what} of {type(module).__name__} that a cut planned runs inside torch.utils.checkpoint, which was not so "
        "when it was traced: the backward would run it as it is written. Checkpoint the whole module, trace it with "
        "checkpointing switched on, or prune it with joins=False"
    )


def join(a: Tensor, b: Tensor, plan: JoinPlan, in_place: bool, indices: tuple[Tensor, Tensor] | None) -> Tensor:
    """``a + b`` where one of the two is a stream of other channels: see `JoinPlan`."""
    if has_torch_function((a, b)):
        return handle_torch_function(join, (a, b), a, b, plan, in_place, indices)
    branch, stream = (b, a) if plan.stream == 0 else (a, b)
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return explicit(branch, stream, plan, in_place)
    axis = plan.axis
    if (branch.shape[axis], stream.shape[axis]) != plan.widths:
        raise RuntimeError(
            f"a residual sum was planned for {plan.widths[0]} and {plan.widths[1]} channels and got "
            f"{branch.shape[axis]} and {stream.shape[axis]}: the model was changed behind demp's back"
        )
    whole = len(plan.runs) == 1 and plan.runs[0][2] == plan.widths[0]
    if whole and not in_place:
        return branch + stream.narrow(axis, plan.runs[0][1], plan.widths[0])
    if transformed():
        return explicit(branch, stream, plan, in_place)
    if indices is None and not torch.compiler.is_compiling():
        return AddRuns.apply(branch, stream, plan, in_place)
    out = branch if in_place else branch.to(torch.promote_types(branch.dtype, stream.dtype), copy=True)
    if indices is None:
        return add_runs(out, stream, plan)
    target, source = indices
    met = stream.index_select(axis, source)
    if met.dtype == out.dtype:
        return out.index_add_(axis, target, met)
    return out.index_copy_(axis, target, (out.index_select(axis, target) + met).to(out.dtype))


def transformed() -> bool:
    """Does `torch.func` (vmap, jvp, jacobians) or forward-mode differentiation run, which need plain operations?"""
    if torch.compiler.is_compiling():
        return False
    internal: Any = torch._C
    return internal._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def add_runs(branch: Tensor, stream: Tensor, plan: JoinPlan) -> Tensor:
    """Add the stream's channels into the branch, run by run."""
    for to, at, length in plan.runs:
        branch.narrow(plan.axis, to, length).add_(stream.narrow(plan.axis, at, length))
    return branch


def explicit(branch: Any, stream: Any, plan: JoinPlan, in_place: bool) -> Any:
    """The same sum in operations that every tool reads: slices, plain sums, one concatenation. Proxies pass, too."""
    pieces, at = [], 0
    for to, source, length in plan.runs:
        if to > at:
            pieces.append(torch.narrow(branch, plan.axis, at, to - at))
        part = torch.narrow(branch, plan.axis, to, length)
        pieces.append(part + torch.narrow(stream, plan.axis, source, length))
        at = to + length
    if at < plan.widths[0]:
        pieces.append(torch.narrow(branch, plan.axis, at, plan.widths[0] - at))
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, plan.axis)
    return branch.copy_(out) if in_place else out


class AddRuns(torch.autograd.Function):
    """A planned sum, added slice by slice. Autograd on its own would copy the whole gradient once per run."""

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
