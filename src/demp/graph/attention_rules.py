"""Axis rules for attention in one operation: its neurons are the heads, each of which attends on its own."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from demp.graph.drawn import binds
from demp.graph.elements import Axis, Labels
from demp.graph.heads import note_heads, shared
from demp.graph.operations import Call
from demp.graph.parts import HEADS
from demp.graph.rules import rule
from demp.graph.trace_state import TraceState

FUSED = tuple(
    f"_scaled_dot_product_{kind}"
    for kind in (
        "flash_attention",
        "flash_attention_for_cpu",
        "efficient_attention",
        "cudnn_attention",
        "fused_attention_overrideable",
        "attention_math",
    )
)
"""ATen operations behind ``F.scaled_dot_product_attention``: query, key and value come first, their last two axes are
positions and channels, the one before them heads."""


@rule(*FUSED)
def attention(trace: TraceState, call: Call) -> Any:
    """Heads of query, key and value are the same neurons, and where the mask has heads, its heads too."""
    query, key, value = (trace.labels(tensor) for tensor in call.args[:3])
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    others = trace.tensors((call.args[3:], call.kwargs))
    at = out.dim() - 3
    for labels, what in ((query, "query"), (key, "key"), (value, "value")):
        for dim, axis in enumerate(labels.axes):
            if dim != at and not (labels is value and dim == out.dim() - 1):
                trace.freeze_axis(axis, f"attention over the neuron axis of its {what}")
    heads = heads_of(trace, call.args[:3], at)
    for mask in others:
        for dim, axis in enumerate(trace.labels(mask).axes):
            if heads is None or dim != mask.dim() - 3:
                trace.freeze_axis(axis, "attention over the neuron axis of its mask")
    if heads is not None and value.axes[at] is None:
        value = replace(value, axes=(*value.axes[:-1], None))
    if heads is not None:
        heads = with_masks(trace, heads, others, at)
    size = call.args[0].numel() * call.args[1].shape[-2] + out.numel() * call.args[1].shape[-2]
    trace.contraction(None, 2 * size, None, heads)
    lead: tuple[Axis | None, ...] = (*[None] * at, heads, None)
    made = Labels((*lead, value.axes[-1]))
    made = made if heads is None else trace.site_on(made, at, HEADS)
    return [made, *[None] * (len(call.out) - 1)] if isinstance(call.out, (tuple, list)) else made


def heads_of(trace: TraceState, tensors: Any, at: int) -> Axis | None:
    """The axis of heads, of which key and value may have fewer, each for several heads in a row of the query."""
    sizes = [tensor.shape[at] for tensor in tensors]
    every = [trace.labels(tensor) for tensor in tensors]
    axes = [labels.axes[at] for labels in every]
    one = at >= 1 and all(size == 1 or labels.copies for size, labels in zip(sizes[1:], every[1:], strict=True))
    if one and shared(trace, axes[0], at, *every[1:]):
        tensors, sizes, axes = tensors[:1], sizes[:1], axes[:1]
    if at < 1 or any(axis is None or sizes[0] % size for axis, size in zip(axes, sizes, strict=True)):
        for axis in axes:
            trace.freeze_axis(axis, "heads of attention with a query, key or value without heads")
        return None
    for axis, tensor in zip(axes, tensors, strict=True):
        assert axis is not None
        note_heads(trace, axis, tensor.shape[-1])
    met = axes[0]
    for axis, size in zip(axes[1:], sizes[1:], strict=True):
        assert axis is not None and met is not None
        repeated = axis if size == sizes[0] else axis.take(repeats(size, sizes[0] // size))
        met = trace.unite(met, repeated)
    return met


def repeats(size: int, times: int) -> Tensor:
    """Position of a key's head for each head of the query."""
    return torch.arange(size, device="cpu").repeat_interleave(times)


def with_masks(trace: TraceState, heads: Axis, masks: list[Tensor], at: int) -> Axis | None:
    """A mask or bias with one part for each head goes with its head."""
    for mask in masks:
        dim = mask.dim() - 3
        if dim < 0 or mask.shape[dim] == 1:
            continue
        axis = trace.labels(mask).axes[dim]
        if axis is None and binds(trace.labels(mask), mask, dim):
            trace.freeze_axis(heads, "attention with a mask of its own for each head, made in the forward")
        elif axis is not None:
            heads = trace.unite(heads, axis)
        else:
            trace.fit([mask], 3, heads)
    return heads
