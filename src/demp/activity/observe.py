"""Watch the consumers of neurons in a forward that runs: which values does each of them read?"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from demp.graph import GraphState, NeuronGraph, Read, calls
from demp.graph.contraction_rules import CONTRACTIONS, operand_of
from demp.graph.forward import evaluating, module_stack
from demp.graph.joins import OnCall, SumWatch
from demp.graph.lookup import Seats
from demp.parallel import whole_parameters

OnRead = Callable[[Read, Tensor], Tensor | None]
RENAMES = {"_to_copy", "clone", "contiguous", "index"}
"""Operations that copy a weight, or that give each token the weights of its expert."""
FUSED = frozenset({"mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"})
"""Recurrent layers in one operation: their first argument is read by weights among the arguments that follow."""


@contextmanager
def observing(model: nn.Module, graph: NeuronGraph, on_read: OnRead) -> Iterator[None]:
    """Calls ``on_read(read, operand)`` at every consumer in a forward; what it returns replaces the operand."""
    sums = {read.seat: read for read in graph.reads if read.seat is not None}
    path: list[str] = []

    def on_sum(seat: tuple[str, int], func: Any, args: tuple[Any, ...]) -> Tensor | None:
        read = sums.get(seat)
        replaced = None if read is None else on_read(read, args[read.operand])
        if read is None or replaced is None:
            return None
        return func(*args[: read.operand], replaced, *args[read.operand + 1 :])

    with ExitStack() as stack:
        called = any(read.call is not None for read in graph.reads)
        if sums or called:
            ran = Counter[str]()
            stack.enter_context(module_stack(model, path, ran))
            on_call = call_reads(graph, on_read) if called else None
            stack.enter_context(SumWatch(path, on_sum, on_call, seats=Seats(graph.reads, ran)))
        stack.enter_context(ReadObserver(graph, named_tensors(model), on_read))
        yield


def call_reads(graph: NeuronGraph, on_read: OnRead) -> OnCall:
    """Calls ``on_read`` where a call of the user's code reads neurons without a weight: a sum, a mean, the largest."""
    reads = {read.call: read for read in graph.reads if read.call is not None}

    def on_call(seat: calls.CallSeat, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = reads.get(seat)
        if read is not None and args[0].dim() > read.axis:
            replaced = on_read(read, args[0])
            if replaced is not None:
                args = (replaced, *args[1:])
        return func(*args, **kwargs)

    return on_call


class ReadObserver(TorchDispatchMode):
    """Calls ``on_read(read, operand)`` at every contraction that reads; what it returns replaces the operand."""

    def __init__(
        self,
        graph: NeuronGraph,
        tensors: Mapping[str, Tensor],
        on_read: OnRead,
        *,
        uses: dict[str, int] | None = None,
    ) -> None:
        """``uses`` counts the uses of weights in this forward, where it is observed in several pieces."""
        super().__init__()
        self._reads = {(read.weight, read.use): read for read in graph.reads if read.seat is None}
        self._last = {read.weight: read for read in sorted(graph.reads, key=lambda read: read.use)}
        self._names = {address(t): (name, span(t)) for name, t in tensors.items() if t.numel()}
        self._starts = sorted(self._names)
        self._copies: list[Tensor] = []
        self._uses: dict[str, int] = {} if uses is None else uses
        self._on_read = on_read

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercept contractions; let everything else pass."""
        name = func._schema.name.removeprefix("aten::")
        if name in CONTRACTIONS:
            args = self._contraction(name, args)
        elif name in FUSED:
            args = self._recurrent(args)
        out = func(*args, **(kwargs or {}))
        if name in FUSED:
            self._hidden(args, out)
        if name in RENAMES and args and isinstance(args[0], Tensor):
            known = self._name(args[0])
            if known is not None and isinstance(out, Tensor) and self._name(out) is None:
                self._names[address(out)] = (known, span(out))
                bisect.insort(self._starts, address(out))
                self._copies.append(out)
        return out

    def _name(self, tensor: Any) -> str | None:
        if not isinstance(tensor, Tensor) or not tensor.numel():
            return None
        at = bisect.bisect_right(self._starts, address(tensor)) - 1
        if at < 0:
            return None
        name, size = self._names[self._starts[at]]
        return name if address(tensor) < self._starts[at] + size else None

    def _recurrent(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for weight in dict.fromkeys(map(self._name, tree_leaves(args[1:5]))):
            read = None if weight is None else self._reads.get((weight, 0))
            if read is not None and leaf(read).startswith("weight_ih_l0"):
                replaced = self._on_read(replace(read, operand=0, axis=args[0].dim() - 1), args[0])
                args = args if replaced is None else (replaced, *args[1:])
        return args

    def _hidden(self, args: tuple[Any, ...], out: Any) -> None:
        """What one layer remembers is what it puts out; of several layers in one operation nothing is seen."""
        weights = args[1] if isinstance(args[1], (list, tuple)) else args[1:5]
        names = [self._name(weight) for weight in weights] if len(weights) <= 4 else []
        for read in (self._reads.get((name, 0)) for name in names if name is not None):
            if read is not None and leaf(read).startswith("weight_hh"):
                self._on_read(replace(read, axis=out[0].dim() - 1), out[0])

    def _contraction(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for at, candidate in reversed(list(enumerate(args[:3]))):
            weight = self._name(candidate)
            if weight is None or candidate.dim() < 2:
                continue
            use = self._uses.get(weight, 0)
            self._uses[weight] = use + 1
            read = self._reads.get((weight, use))
            if read is None and weight in self._last and use > self._last[weight].use:
                read = self._last[weight]  # this forward uses the weight more often than the one that was traced
            found = operand_of(name, args, at)
            if read is None or found is None:
                return args
            if found != (read.operand, read.axis):
                read = replace(read, operand=found[0], axis=found[1])
            replaced = self._on_read(read, args[read.operand])
            if replaced is not None:
                args = (*args[: read.operand], replaced, *args[read.operand + 1 :])
            return args
        return args


def leaf(read: Read) -> str:
    """The last part of the name of a consumer's weight."""
    return read.weight.rpartition(".")[2]


def address(tensor: Tensor) -> int:
    """Where a tensor's values begin; parameters may be parts of one storage."""
    return tensor.data_ptr()


def span(tensor: Tensor) -> int:
    """Bytes from a tensor's first value to the end of its last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size()


@dataclass(frozen=True)
class LayerPositions:
    """Where one layer's neurons sit on a read axis, at present widths."""

    layer: int
    positions: Tensor
    neuron: Tensor


def layer_positions(state: GraphState, read: Read) -> list[LayerPositions]:
    """Present positions of each layer on a read axis; neurons in dense numbering of their layer."""
    graph, here = state.graph, state.kept(read.classes)
    present = torch.full((len(read.classes),), -1, device="cpu")
    present[here] = torch.arange(len(here), device="cpu")
    found = []
    for layer, carried in read.layers.items():
        carried = carried[present[carried] >= 0]
        order = graph.layers[layer].classes.argsort()
        ranked = graph.layers[layer].classes[order]
        neuron = order[torch.searchsorted(ranked, read.classes[carried])]
        found.append(LayerPositions(layer, present[carried], neuron))
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast, the random state as before."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with (
        whole_parameters(model),
        evaluating(model),
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        torch.autocast(device.type, enabled=False),
    ):
        yield
