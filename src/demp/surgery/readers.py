"""One forward that looks at everything that reads neurons: their moments, and where a constant could go instead."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from demp.activity.moments import Moments
from demp.activity.observe import FUSED, ReadObserver
from demp.activity.tally import Key, key_of, name_of
from demp.graph import GraphState, Read
from demp.graph.contraction_rules import CONVOLUTIONS, SHIFTED
from demp.parallel import Context

NORMS = frozenset({
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update",
})  # fmt: skip
SAME = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "unsqueeze", "squeeze", "alias",
    "detach", "clone", "contiguous", "_to_copy", "expand", "flatten", "unflatten",
})  # fmt: skip
"""Operations that pass a tensor on as it is."""


@dataclass(frozen=True)
class Home:
    """What takes the constant of one reader: a tensor that is added (1) or subtracted (-1) per channel.

    Without a tensor a norm takes it out by itself, because it uses the statistics of the batch.
    """

    tensor: str | None
    sign: float
    channels: int = 0


@dataclass(frozen=True)
class Made:
    """What one operation made, and which operations use it."""

    added: str | None
    """The bias or shift that the operation added."""
    taken: list[Home | None] = field(default_factory=list)
    """One entry per operation that takes it up: the home that a norm offers, None for anything else."""


@dataclass
class Use:
    """One consumer in one forward."""

    read: Read
    here: Tensor
    """Which positions of the dense axis are there."""
    moments: Moments
    """Of each position that is there."""
    made: Made | None
    """Of a contraction what it makes; of a residual sum its other side."""
    call: "ContractionCall | None" = None
    """The contraction; None for a residual sum."""


@dataclass(frozen=True)
class ContractionCall:
    """One contraction: operation, arguments, and which of them are the operand (its shape alone) and the weight."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operand: int
    weight: int

    @property
    def view(self) -> Tensor:
        """The weight as the operation sees it."""
        return self.args[self.weight]

    @property
    def groups(self) -> int:
        """Return the number of groups of a convolution, 1 for other operations."""
        return int(self.args[8]) if self.name in CONVOLUTIONS else 1

    def on_constants(self, values: Tensor, axis: int) -> Tensor:
        """(channels, positions): what it makes of neurons that are these constants everywhere, without its bias.

        In float64, on one example.
        """
        operand, args = self.args[self.operand], list(self.args)
        convolved = self.name in CONVOLUTIONS
        shape = list(operand.shape)
        for dim in range(operand.dim()):
            batched = dim == 0 and (operand.dim() == self.view.dim() if convolved else operand.dim() == 3)
            if dim != axis and (batched if convolved else not batched):
                shape[dim] = 1
        line = [-1 if dim == axis else 1 for dim in range(operand.dim())]
        args[self.operand] = values.to(self.view.device, torch.float64).view(line).expand(shape)
        args[self.weight] = self.view.detach().double()
        kwargs = dict(self.kwargs)
        if convolved or (self.name == "linear" and len(args) > 2):
            args[2] = None
        elif self.name in SHIFTED:
            args[0] = torch.zeros((), dtype=torch.float64, device=self.view.device)
        kwargs.pop("bias", None)
        out = self.func(*args, **kwargs)
        if convolved:
            dim = 1 if out.dim() == self.view.dim() else 0
        else:
            dim = out.dim() - 1 if self.weight > self.operand else max(out.dim() - 2, 0)
        return out.movedim(dim, 0).reshape(out.shape[dim], -1)


@dataclass(frozen=True)
class Readers:
    """All consumers in one forward, its outputs, and how often each small tensor was used."""

    uses: dict[Key, list[Use]]
    outputs: list[Tensor]
    touched: Counter[str]
    weights: Counter[str]
    """How often a contraction used each weight."""
    tensors: dict[str, Tensor]

    def home(self, use: Use) -> Home | None:
        """Where the constant that one consumer reads can go."""
        made = use.made
        if made is None:
            return None
        only = len(made.taken) == 1
        if made.added is not None and (only or use.read.seat is None):
            return Home(made.added, 1.0, self.tensors[made.added].numel())
        return made.taken[0] if only and use.read.seat is None else None

    def shared(self, context: Context) -> "Readers":
        """With the moments of all ranks, merged in their order; what did not run on one of them is left out."""
        if context.alone:
            return self
        mine = {f"{name_of(key)}#{n}": use.moments.to_plain() for key, some in self.uses.items()
                for n, use in enumerate(some)}  # fmt: skip
        of_ranks = context.gathered(mine)
        uses: dict[Key, list[Use]] = {}
        for key, some in self.uses.items():
            for n, use in enumerate(some):
                name = f"{name_of(key)}#{n}"
                if all(name in other for other in of_ranks):
                    first, *others = (Moments(*other[name]) for other in of_ranks)
                    for other in others:
                        first = first.merged(other)
                    uses.setdefault(key, []).append(Use(use.read, use.here, first, use.made, use.call))
        return Readers(uses, self.outputs, self.touched, self.weights, self.tensors)


class ReaderWatch(ReadObserver):
    """Notes every consumer, what it makes, and what uses that."""

    def __init__(self, state: GraphState, tensors: dict[str, Tensor]) -> None:
        graph = state.graph
        super().__init__(graph, tensors, self._on_read)
        self.tensors, self.uses = tensors, {}
        self.touched: Counter[str] = Counter()
        self._here = {key_of(read): state.kept(read.classes) for read in graph.reads}
        self._sums = {read.seat: read for read in graph.reads if read.seat is not None}
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._now: tuple[str, Any, tuple[Any, ...], dict[str, Any]] = ("", None, (), {})
        self._use: Use | None = None
        self._paused = False

    def on_call_read(self, read: Read, operand: Tensor) -> None:
        """A sum or mean over neurons reads them; what it makes has no place for a constant."""
        self._note(read, operand, None, None)

    def on_sum(self, seat: tuple[str, int], func: Any, args: tuple[Any, ...]) -> Tensor | None:
        """A residual sum reads its stream; nothing inside takes up its other side."""
        read = self._sums.get(seat)
        if read is None:
            return None
        other = args[1 - read.operand]
        made = self._made.get(other)
        self._note(read, args[read.operand], made, None)
        self._paused = True
        try:
            out = func(*args)
        finally:
            self._paused = False
        if made is not None:
            made.taken.append(None)
            if out.data_ptr() == other.data_ptr():  # written in place: from here on it is the sum
                del self._made[other]
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything pass, and note it."""
        if self._paused:
            return func(*args, **(kwargs or {}))
        name, self._use = func._schema.name.removeprefix("aten::"), None
        self._now = (name, func, args, kwargs or {})
        for vector in (a for a in args if isinstance(a, Tensor) and a.dim() == 1):
            known = self._name(vector)
            if known is not None:
                self.touched[known] += 1
        taken = [made for a in args if isinstance(a, Tensor) and (made := self._made.get(a)) is not None]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if name in SAME:
            if taken and isinstance(first, Tensor):
                self._made[first] = taken[0]
            return out
        for made in taken:
            made.taken.append(self._offered(args) if name in NORMS else None)
        if name in NORMS and isinstance(first, Tensor):
            self._made[first] = Made(self._name(args[2]))
        elif self._use is not None and isinstance(first, Tensor):
            self._use.made = self._made[first] = Made(self._bias())
        return out

    def _on_read(self, read: Read, operand: Tensor) -> None:
        name, func, args, kwargs = self._now
        if name in FUSED:
            self._note(read, operand, None, None)
            return
        first = 1 if name in SHIFTED else 0
        shape = torch.empty(operand.shape, device="meta")
        args = (*args[: read.operand], shape, *args[read.operand + 1 :])
        args = tuple(a.data if isinstance(a, Tensor) else a for a in args)  # no views that outlive a step
        call = ContractionCall(name, func, args, kwargs, read.operand, 2 * first + 1 - read.operand)
        self._use = self._note(read, operand, None, call)

    def _note(self, read: Read, operand: Tensor, made: Made | None, call: ContractionCall | None) -> Use | None:
        here = self._here[key_of(read)]
        if operand.numel() == 0 or operand.shape[read.axis] != len(here):
            return None
        use = Use(read, here, Moments.along(operand, read.axis), made, call)
        self.uses.setdefault(key_of(read), []).append(use)
        return use

    def _bias(self) -> str | None:
        """The bias that the contraction which runs now adds; one that has no name is part of what it makes."""
        name, _, args, kwargs = self._now
        bias = args[0] if name in SHIFTED else args[2] if len(args) > 2 else kwargs.get("bias")
        return self._name(bias) if isinstance(bias, Tensor) and bias.dim() == 1 else None

    def _offered(self, args: tuple[Any, ...]) -> Home | None:
        """The home that a batch norm offers."""
        if not isinstance(args[3], Tensor):
            return Home(None, 0.0)
        mean = self._name(args[3])
        return None if mean is None else Home(mean, -1.0, self.tensors[mean].numel())
