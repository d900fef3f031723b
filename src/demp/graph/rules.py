"""Axis rules: what each ATen operation does to the neurons on its operands' axes.

A rule receives the state of the trace and one call and returns the labels of the outputs. An operation without a rule
freezes every neuron that reaches it: lost sparsity, never a wrong cut. Rules for shapes and for arithmetic that mixes
neurons live in ``shape_rules`` and ``contraction_rules``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from demp.graph.activations import SITES, activated
from demp.graph.call_rules import note_stream, reads_neutrally
from demp.graph.computed_weights import computed, over_weight
from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.trace_state import TraceState
from demp.graph.zeros import note_lifted, note_zeros

Rule = Callable[[TraceState, Call], Any]
RULES: dict[str, Rule] = {}

EXTRA_POINTWISE = {
    "bernoulli", "native_dropout", "copy_", "fill_", "zero_", "bernoulli_", "lerp", "rrelu_with_noise",
    "_prelu_kernel", "where", "masked_fill", "masked_fill_", "clamp", "clamp_", "nan_to_num", "dropout",
    "uniform_", "normal_", "rand_like", "randn_like", "zeros_like", "ones_like", "empty_like", "full_like",
}  # fmt: skip


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def find(op: torch._ops.OpOverload, name: str) -> Rule:
    """The rule for an operation; unknown ones freeze what reaches them."""
    if name in RULES:
        return RULES[name]
    if name in SITES or name in EXTRA_POINTWISE or torch.Tag.pointwise in op.tags:
        return pointwise
    return unknown


def unknown(trace: TraceState, call: Call) -> None:
    """Freeze every neuron on every operand."""
    for tensor in trace.tensors((call.args, call.kwargs)):
        trace.freeze_tensor(tensor, f"unknown operation {call.name}")


def pointwise(trace: TraceState, call: Call) -> Any:
    """Element-wise with broadcast: neurons that meet at one position are removed together."""
    operands = trace.tensors((call.args, call.kwargs))
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    if not isinstance(out, Tensor) or not operands:
        return None
    met = trace.meet(operands, out.shape, call.name)
    labels = activated(trace, call, operands, met)
    if labels.constant:
        labels = computed(trace, call.name, operands, labels)
    if trace.recording.offer.bare:
        labels = replace(labels, lifted=note_zeros(trace, call, met).lifted)
    if trace.recording.offer.streams:
        labels = replace(labels, squares_of=met.axes) if is_square(call) else labels
    if isinstance(call.out, (tuple, list)):
        return [labels if isinstance(o, Tensor) and o.shape == out.shape else None for o in call.out]
    return labels


def is_square(call: Call) -> bool:
    """Does the operation make squares: ``x.pow(2)``, ``x.square()``, ``x * x``?"""
    if call.name == "pow":
        exponent = call.arg(1, "exponent")
        return isinstance(exponent, (int, float)) and exponent == 2
    return call.name == "square" or (call.name == "mul" and call.args[0] is call.arg(1, "other"))


@rule("glu")
def gated_half(trace: TraceState, call: Call) -> Labels:
    """First half times sigmoid of the second half along one axis."""
    labels = trace.labels(call.args[0])
    dim = call.arg(1, "dim", -1) % call.args[0].dim()
    axes = list(labels.axes)
    axis = axes[dim]
    if axis is not None:
        half = len(axis.ids) // 2
        trace.elements.union(axis.ids[:half], axis.ids[half:])
        axes[dim] = axis.take(torch.arange(half, device="cpu"))
    return trace.site(Labels(tuple(axes), constant=labels.constant), "glu")


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d",
      "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d",
      "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
      "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
      "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_nearest_exact1d",
      "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa",
      "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d")  # fmt: skip
def per_channel_window(trace: TraceState, call: Call) -> Any:
    """Pooling, resampling and padding over space: each channel on its own."""
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    source = call.args[0]
    labels = trace.labels(source)
    spatial = int(next(c for c in call.name if c.isdigit()))
    axes: list[Axis | None] = list(labels.axes)
    for dim in range(source.dim() - spatial, source.dim()):
        trace.freeze_axis(axes[dim], f"{call.name} runs over the neuron axis")
        axes[dim] = None
    result = Labels(tuple(axes), constant=labels.constant) if out.dim() == source.dim() else None
    return [result, result] if isinstance(call.out, (tuple, list)) else result


@rule("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "logsumexp",
      "any", "all", "argmax", "argmin", "norm", "linalg_vector_norm", "median")  # fmt: skip
def reduction(trace: TraceState, call: Call) -> Any:
    """A reduction over the neuron axis mixes neurons; over other axes it keeps them apart."""
    source = call.args[0]
    at = 2 if call.name in ("norm", "linalg_vector_norm") else 1
    value = call.arg(at, "dim")
    if at == 1 and not isinstance(value, (int, list, tuple, type(None))):
        return unknown(trace, call)
    dims = call.dims(value, source.dim()) if source.dim() else []
    labels = trace.labels(source)
    first = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    keepdim = first.dim() == source.dim()
    neutral = any(labels.axes[d] is not None for d in dims) and reads_neutrally(trace, call.name, source, dims, labels)
    axes: list[Axis | None] = []
    for dim, axis in enumerate(labels.axes):
        if dim in dims:
            if not neutral:
                trace.freeze_axis(axis, over_weight(labels) or f"{call.name} over the neuron axis mixes neurons")
            if keepdim:
                axes.append(None)
        else:
            axes.append(axis)
    if call.name == "logsumexp":
        note_lifted(trace, axes, call.name)
    result = Labels(tuple(axes), constant=labels.constant, computed_from=labels.weight if labels.constant else None)
    if neutral and isinstance(call.out, (tuple, list)):  # values and their positions
        over = next(labels.axes[d] for d in dims if labels.axes[d] is not None)
        return [result, replace(result, chosen=over)]
    return [result for _ in call.out] if isinstance(call.out, (tuple, list)) else result


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp", "flip", "roll",
      "_safe_softmax", "sort")  # fmt: skip
def along_axis(trace: TraceState, call: Call) -> Any:
    """Operations whose outputs depend on all positions (or the order) along the named axes."""
    source = call.args[0]
    keyword = {"roll": "dims", "flip": "dims"}.get(call.name, "dim")
    rolled = call.name == "roll"  # without dims the flattened tensor is rolled
    value = call.arg(2 if rolled else 1, keyword, None if rolled else -1)
    labels = trace.labels(source)
    axes = list(labels.axes)
    for dim in call.dims(value, source.dim()) if source.dim() else []:
        trace.freeze_axis(axes[dim], f"{call.name} over the neuron axis mixes neurons")
        axes[dim] = None
    if "softmax" in call.name or call.name == "logcumsumexp":
        note_lifted(trace, axes, call.name.strip("_"))
    result = Labels(tuple(axes), constant=labels.constant)
    return [result for _ in call.out] if isinstance(call.out, (tuple, list)) else result


@rule("native_layer_norm", "_fused_rms_norm")
def mixing_norm(trace: TraceState, call: Call) -> Any:
    """LayerNorm and RMSNorm: where statistics run over neurons, a dead one still counts; other axes are kept apart."""
    source, last = call.args[0], len(call.args[1])
    why = f"{call.name.removeprefix('native_')} over the neuron axis mixes neurons"
    for tensor in trace.tensors((call.args[1:], call.kwargs)):
        trace.freeze_tensor(tensor, why)
    labels = trace.labels(source)
    for axis in labels.axes[source.dim() - last :]:
        note_stream(trace, axis)
        trace.freeze_axis(axis, why)
    lead, made_of = labels.axes[: source.dim() - last], labels.weight if labels.constant else None
    kept = Labels((*lead, *[None] * last), constant=labels.constant, computed_from=made_of)
    return [kept, *[None] * (len(call.out) - 1)]


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update")  # fmt: skip
def batch_norm(trace: TraceState, call: Call) -> Any:
    """Per channel: scale, shift and running statistics belong to the channel's neuron."""
    source = call.args[0]
    labels = trace.labels(source)
    channel = labels.axes[1] if len(labels.axes) > 1 else None
    if measures(call):
        what = "a weight" if labels.constant else "a batch"
        for axis in (*labels.axes[:1], *labels.axes[2:]):
            trace.freeze_axis(axis, f"mean and deviation of {what} run over the neuron axis")
    vectors = [a for a in call.args[1:] if isinstance(a, Tensor)]
    if channel is None:
        for vector in vectors:
            trace.freeze_tensor(vector, "batch norm of a tensor without neurons")
        return [labels, None, None]
    for vector in vectors:
        other = trace.labels(vector).axes[0]
        if other is None:
            trace.freeze_axis(channel, "batch norm with a computed vector")
        else:
            trace.elements.union(channel.ids, other.ids)
    if labels.constant and measures(call) and all(vector is call.args[1] for vector in vectors):
        return [standardised(trace, labels, call.args[1]), None, None]
    names = [whole(trace, a) if isinstance(a, Tensor) else None for a in call.args[1:3]]
    trace.norm(names[0], names[1], sole_producer(trace, channel))
    if names[0] is None and not measures(call):
        note_lifted(trace, [channel], "a batch norm without a scale")
    return [Labels(labels.axes, constant=labels.constant), None, None]


def measures(call: Call) -> bool:
    """Does a batch norm take mean and deviation from the tensor at hand, not from the running ones?"""
    names = [argument.name for argument in call.op._schema.arguments]
    return bool(call.arg(names.index("training"), "training")) if "training" in names else "with_update" in call.name


def standardised(trace: TraceState, labels: Labels, scale: Tensor | None) -> Labels:
    """A weight of which each output's part gets mean 0 and deviation 1 (StdConv2d), times a parameter if there is one.

    Qiao et al. 2019, arXiv:1903.10520; with the gain Brock et al. 2021, arXiv:2101.08692.
    """
    axes = (None, labels.axes[1], *[None] * (len(labels.axes) - 2))
    gain = None if scale is None else trace.labels(scale)
    name = None if gain is None or trace.own_axis(gain, gain.axes[0]) is None else gain.weight
    return Labels(axes, constant=True, computed_from=labels.source, scale=name)


def whole(trace: TraceState, vector: Tensor) -> str | None:
    """The parameter that a vector is, if it is all of one."""
    labels = trace.labels(vector)
    return labels.source if labels.axes and trace.own_axis(labels, labels.axes[-1]) is not None else None


def sole_producer(trace: TraceState, axis: Axis) -> str | None:
    """The weight that made exactly this axis; None for a sum, a part, or a flattened axis."""
    made = trace.recording.axes.get(axis.producer or "", ())
    return axis.producer if any(torch.equal(axis.ids, other.ids) for other in made) else None


@rule("detach", "alias", "lift_fresh", "_to_copy", "clone", "contiguous", "detach_")
def identity(trace: TraceState, call: Call) -> Labels:
    """The same tensor under another name, dtype or memory format."""
    return trace.labels(call.args[0])


@rule("as_strided_")
def restrided(trace: TraceState, call: Call) -> Labels | None:
    """Other steps in memory along axes of length one, as pooling to one pixel writes them: the same tensor."""
    (shape, steps), out = trace.layout_before, call.out
    moves = [size != 1 and old != new for size, old, new in zip(shape, steps, out.stride(), strict=False)]
    if shape == tuple(out.shape) and not any(moves) and call.arg(3, "storage_offset") is None:
        return trace.labels(call.args[0])
    return unknown(trace, call)


@rule("embedding")
def embedding(trace: TraceState, call: Call) -> Labels:
    """Rows are looked up: the row axis stays, the feature axis flows on."""
    table = trace.labels(call.args[0])
    if table.source is not None:
        trace.recording.tables[table.source] = None
    trace.freeze_axis(table.axes[0], "rows of an embedding are looked up by index")
    lead: tuple[Axis | None, ...] = (None,) * (call.out.dim() - 1)
    return Labels((*lead, table.axes[1]))
