"""What a recurrent layer does to neurons: which it reads, which it makes, and which of its own it reads in every step.

The call is followed as a whole. What it consists of depends on the device: on some it is one operation, on others the
input is multiplied once for all steps, or step by step.

A hidden unit is its rows in every gate, its column of the weights that read the step before, and its columns in what
reads the output. An nn.LSTM has one hidden size for all layers and directions, so that unit j of each of them goes with
unit j of the others. From a state of zeros it outputs zero at all times exactly if its candidate (the one tanh or ReLU
before the gates) is zero in every step: sigmoid gates are never zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from demp.graph.contraction_rules import read
from demp.graph.elements import Axis, Labels
from demp.graph.trace_state import TraceState

KINDS = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}
"""What the layer of its hidden units is called."""
WORDS = {
    **dict.fromkeys((torch.rnn_tanh, torch.rnn_relu), "an RNN"), torch.lstm: "an LSTM", torch.gru: "a GRU",
    **dict.fromkeys((torch.rnn_tanh_cell, torch.rnn_relu_cell), "an RNN cell"),
    torch.lstm_cell: "an LSTM cell", torch.gru_cell: "a GRU cell",
}  # fmt: skip
"""How reasons name them."""
HIDDEN = "hidden units of {} that {}"
OF_CELLS = "hidden units of {} whose first state has all of them (zeros, a parameter); those of torch.nn.{} are offered"


def recurrent(trace: TraceState, func: Any, args: tuple[Any, ...], out: Any) -> list[tuple[Tensor, Labels]]:
    """Labels of what the layer makes: its hidden units, which may go unless `kept` says why not."""
    source, labels = args[0], trace.labels(args[0])
    lists = [a for a in args[1:] if isinstance(a, (list, tuple)) and a and all(isinstance(t, Tensor) for t in a)]
    weights = lists[-1]
    state = [t for t in tree_leaves(args[1:]) if isinstance(t, Tensor) and not any(t is w for w in weights)]
    named = {(trace.labels(weight).source or "").rpartition(".")[2]: weight for weight in weights}
    why = kept(trace, WORDS[func], named, state)
    for tensor in state:
        trace.freeze_tensor(tensor, HIDDEN.format(WORDS[func], "starts from a state that is computed"))
    for axis in labels.axes[:-1]:
        trace.freeze_axis(axis, "a recurrent layer runs over the neuron axis")
    if not any(name.startswith("weight_ih_l0") for name in named):
        trace.freeze_tensor(source, "read by computed weights of a recurrent layer")
    units = unite(trace, named, why or "", HIDDEN.format(WORDS[func], "no weight_hh_l0 reads"))
    made = units if units is not None and why is None else None
    outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    if made is not None:
        made = trace.site(Labels((Axis(made.ids, made.sites, trace.tick()),)), KINDS[func]).axes[0]
    steps = source.numel() // max(source.shape[-1], 1)
    for name, weight in named.items():
        own = trace.labels(weight)
        if weight.dim() == 2:
            reads = consume(trace, name, labels, made, own, source.dim())
            trace.contraction(own.source, 2 * steps * weight.numel(), reads, own.axes[0])
            bias = name.replace("weight", "bias")
            if bias in named:
                trace.bias(own.source, trace.labels(named[bias]).source)
    return [(tensor, hidden(trace, tensor, made)) for tensor in outs]


def kept(trace: TraceState, words: str, named: dict[str, Tensor], state: list[Tensor]) -> str | None:
    """Why hidden units stay; None if they may go."""
    path = trace.running()
    sources = {(trace.labels(weight).source or "").rpartition(".")[0] for weight in named.values()}
    if sources != {path} or path not in trace.recurrent:
        return HIDDEN.format(words, "no torch.nn.RNN, LSTM or GRU holds")
    if any(name.startswith("weight_hr") for name in named):
        return HIDDEN.format(words, "projects them (proj_size), so that each step reads mixtures of them")
    if any(t.is_floating_point() and not trace.labels(t).uniform for t in state):
        return HIDDEN.format(words, "starts from a state that is given: it need not be zero")
    return None


def unite(trace: TraceState, named: dict[str, Tensor], why: str, unread: str) -> Axis | None:
    """All slices of a hidden unit, in every gate, layer and direction; or all of them frozen."""
    first = named.get("weight_hh_l0")
    units = None if first is None else trace.labels(first).axes[1]
    path = trace.running()
    for name, weight in named.items():
        axes = trace.labels(weight).axes
        if why or units is None:
            for dim, axis in enumerate(axes):
                if not (dim == 1 and name.startswith("weight_ih_l0")):
                    trace.freeze_axis(axis, why or unread)
            continue
        for dim, axis in enumerate(axes):
            if axis is not None and not (dim == 1 and name.startswith("weight_ih_l0")):
                trace.elements.union(axis.ids, units.ids.repeat(len(axis.ids) // len(units.ids)))
    if not why and units is not None:
        trace.recording.attributes[path, "hidden_size"] = units.ids
    return units


def consume(trace: TraceState, name: str, source: Labels, made: Axis | None, weight: Labels, ndim: int) -> Axis | None:
    """What one weight reads: the input, the units of the same layer in the step before, or those of the layer below."""
    slices = weight.axes[1]
    if name.startswith("weight_ih_l0"):
        read(trace, source, ndim - 1, weight, 1, operand=0)
    elif made is None or slices is None:
        return None
    else:
        times = len(slices.ids) // len(made.ids)
        units = Axis(made.ids.repeat(times), made.sites.repeat(times), made.born)
        read(trace, Labels((None, units)), 1, weight, 1, operand=0)
    return slices


def hidden(trace: TraceState, tensor: Tensor, units: Axis | None) -> Labels:
    """Labels of an output: the units along its last axis, one direction after the other."""
    if units is None or not tensor.is_floating_point():
        return trace.bare(tensor)
    times = tensor.shape[-1] // len(units.ids)
    axis = Axis(units.ids.repeat(times), units.sites.repeat(times), units.born)
    return Labels((*[None] * (tensor.dim() - 1), axis))


def cell(trace: TraceState, func: Any, args: tuple[Any, ...]) -> None:
    """One step of a cell, which is followed by its operations: hidden units stay unless neurons are its state."""
    states = [args[1]] if isinstance(args[1], Tensor) else [*args[1]]
    if all(labels.axes[-1] is not None and not labels.constant for labels in map(trace.labels, states)):
        return
    kind = WORDS[func].split()[1]
    why = OF_CELLS.format(WORDS[func], kind)
    for tensor in (*states, *args[3:]):
        if isinstance(tensor, Tensor):
            trace.freeze_tensor(tensor, why)
    trace.freeze_axis(trace.labels(args[2]).axes[0], why)


def packed(trace: TraceState, args: tuple[Any, ...], out: Any) -> list[tuple[Tensor, Labels]]:
    """Sequences of several lengths, packed or padded: the axes behind batch and time stay as they are."""
    source, data = args[0], out[0]
    lead = 2 if data.dim() < source.dim() else 1
    labels = trace.labels(source)
    for axis in labels.axes[:lead]:
        trace.freeze_axis(axis, "neurons on the batch or time axis of a packed sequence")
    kept = labels.axes[lead:]
    return [(data, Labels((*[None] * (data.dim() - len(kept)), *kept)))]


def recurrent_modules(model: nn.Module) -> set[str]:
    """Paths of torch's own recurrent layers."""
    return {path for path, module in model.named_modules() if isinstance(module, nn.RNNBase)}


@contextmanager
def step_by_step(model: nn.Module) -> Iterator[None]:
    """Inside, recurrent layers multiply in every step what they remember, instead of running as one operation."""
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before = [library.enabled for library in libraries]
    recurs = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        for library in libraries if recurs else ():
            library.enabled = False
        yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            if recurs:
                library.enabled = enabled
