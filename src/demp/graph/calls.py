"""Calls of the user's code whose meaning depends on how many neurons an axis has: which they are, and what is planned.

``x.chunk(2, 1)`` takes equal parts, ``x[:, :c]`` a number that the module holds, a mean over channels divides by their
number, a convolution along the channels reads neighbours. The module that owns such a call keeps its forward; a mode
carries the call out for the neurons that are left (``graph.carrying_out``).
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import _pack_padded_sequence as pack_sequence  # pyright: ignore[reportPrivateImportUsage]
from torch import _pad_packed_sequence as pad_sequence  # pyright: ignore[reportPrivateImportUsage]
from torch.nn import functional as F

INDEXING = (Tensor.__getitem__, operator.getitem)  # the second from torch.export
KINDS: dict[Any, str] = {
    **dict.fromkeys((torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.split_with_sizes,
                     Tensor.split_with_sizes, torch.tensor_split, Tensor.tensor_split), "split"),
    **dict.fromkeys((*INDEXING, torch.narrow, Tensor.narrow), "slice"),
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape, Tensor.unflatten, torch.unflatten), "view"),
    **dict.fromkeys((Tensor.flatten, torch.flatten), "flatten"),
    **dict.fromkeys((torch.mean, Tensor.mean), "mean"),
    **dict.fromkeys((torch.sum, Tensor.sum, torch.norm, Tensor.norm, torch.linalg.vector_norm, torch.linalg.norm,
                     F.normalize, torch.amax, Tensor.amax, torch.max, Tensor.max), "sum"),
    F.pad: "pad", torch.conv1d: "conv", torch.channel_shuffle: "shuffle", F.multi_head_attention_forward: "heads",
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), "recurrent"),
    **dict.fromkeys((torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell), "cell"),
    **dict.fromkeys((pack_sequence, pad_sequence), "packed"),
    F.rms_norm: "norm", torch.rms_norm: "norm", F.layer_norm: "layer_norm", torch.layer_norm: "layer_norm",
}  # fmt: skip
"""How user code spells such a call, and its kind. Of ``sum``, ``pad``, ``recurrent``, ``cell`` and ``packed`` there are
no plans."""
METHODS = {
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), "split"),
    "narrow": "slice",
    **dict.fromkeys(("view", "reshape", "unflatten"), "view"),
    "mean": "mean",
}
"""The same, as `torch.fx` names methods."""
ATTRIBUTE = "demp_calls"

CallSeat = tuple[str, str, int]
"""Path of the module whose code makes the call, its kind, and its number among the calls of this kind inside it."""


@dataclass(frozen=True)
class CallPlan:
    """How one call is carried out."""

    kind: str
    axis: int
    """Axis of the first argument that carries the neurons."""
    width: int
    """Positions of this axis; in a view it may hold an axis of the examples, too."""
    sizes: tuple[int, ...] = ()
    """Lengths of the parts (``split``); first position and length (``slice``); axis and its new length (``view``)."""
    scale: float = 1.0
    """Share of the neurons that is left, of a mean or a norm: removed ones count as the zeros that they were."""
    expand: tuple[int, ...] = ()
    """Per position that the call is to see: the one that is there, or -1 for zeros. Empty: it sees what is there."""
    select: tuple[int, ...] = ()
    """Positions of the result that are kept, if it saw more than is there."""
    expect: tuple[int, ...] = ()
    """Of a view that splits the neuron axis: the first of the new axes, and the lengths of all of them."""
    calls: int = 0
    """Calls of this kind in one call of the module; 0 where a file of an earlier version does not say."""
    training: tuple[int, ...] = ()
    """The same of each traced call in training mode; empty: not known."""
    ndim: int = 0
    """Axes of the first argument."""
    grid: tuple[int, ...] = ()
    """Of a channel shuffle by views: the lengths of the axes that the first view makes, or that the last one merges."""
    block: tuple[int, ...] = ()
    """Of a view: the first of the axes that it regroups with the neurons and their number, the same of what they
    become, and 1 if an axis of length 1 came behind them, which may have been part of it."""
    dense: int = 0
    """Of a view: the length of the new axis in the example before any cut."""
    places: tuple[str, ...] = ()
    """Where it stands (``graph.places``) in the traced forwards, as ``place#turn/turns``; empty: not known."""


def entries_of(index: Any) -> tuple[Any, ...]:
    """The entries of an index, ``i`` and ``j`` of ``x[i, j]``, as a tuple."""
    return index if isinstance(index, tuple) else (index,)


def is_cut(entry: Any) -> bool:
    """Is this entry of an index a slice that may leave something out?"""
    return isinstance(entry, slice) and not (entry.start is None and entry.stop is None and entry.step is None)


def entry_of(entries: Sequence[Any], axis: int, ndim: int) -> int | None:
    """Which entry of an index stands for the axis; None if that cannot be known."""
    if any(not (entry is None or entry is Ellipsis or isinstance(entry, (int, slice))) for entry in entries):
        return None
    left = ndim - sum(entry is not None and entry is not Ellipsis for entry in entries)
    dim = 0
    for at, entry in enumerate(entries):
        if entry is Ellipsis:
            dim += left
        elif entry is not None:
            if dim == axis:
                return at if isinstance(entry, slice) else None
            dim += 1
    return None


def calls_of(module: nn.Module) -> dict[str, CallPlan]:
    """The planned calls of one module: ``kind:number`` -> plan."""
    return dict(module.__dict__.get(ATTRIBUTE, {}))


def model_calls(model: nn.Module) -> dict[str, dict[str, CallPlan]]:
    """Module path -> planned calls, over the whole model."""
    return {name: plans for name, module in model.named_modules() if (plans := calls_of(module))}


def calls_to_plain(model: nn.Module) -> dict[str, dict[str, dict[str, Any]]]:
    """The planned calls of a model, JSON-ready."""
    return {name: {key: asdict(p) for key, p in plans.items()} for name, plans in model_calls(model).items()}


def calls_from_plain(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, CallPlan]]:
    """Rebuild call plans from plain data; the inverse of `calls_to_plain`."""

    def plan(values: Mapping[str, Any]) -> CallPlan:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return CallPlan(**given)

    return {name: {key: plan(values) for key, values in plans.items()} for name, plans in plain.items()}
