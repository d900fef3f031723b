"""Axis rules for operations that treat every channel alone over space, and for those that fold space into channels."""

from typing import Any

import torch
from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.rules import rule, unknown
from demp.graph.trace_state import TraceState


def kept_but(trace: TraceState, call: Call, dims: list[int]) -> Labels:
    """Labels of an output whose positions along ``dims`` depend on one another; all other axes stay."""
    labels = trace.labels(call.args[0])
    axes = list(labels.axes)
    for dim in dims:
        trace.freeze_axis(axes[dim], f"{call.name} over the neuron axis mixes neurons")
        axes[dim] = None
    return Labels(tuple(axes), constant=labels.constant)


def repeated(axis: Axis | None, times: int) -> Axis | None:
    """Every channel ``times`` times in a row."""
    return None if axis is None else axis.take(torch.arange(len(axis.ids), device="cpu").repeat_interleave(times))


def grouped(trace: TraceState, axis: Axis | None, size: int) -> Axis | None:
    """``size`` channels in a row go together and become one."""
    if axis is None:
        return None
    first = axis.ids[::size]
    trace.elements.union(axis.ids, first.repeat_interleave(size))
    sites = axis.sites[::size]
    for at in range(1, size):
        sites = torch.where(sites == axis.sites[at::size], sites, torch.zeros_like(sites))  # no one layer
    return Axis(first, sites, axis.born, axis.producer)


@rule("pixel_shuffle")
def pixel_shuffle(trace: TraceState, call: Call) -> Labels:
    """(C r^2, H, W) becomes (C, r H, r W): the r^2 channels of one output channel go together."""
    labels, size = trace.labels(call.args[0]), call.arg(1, "upscale_factor") ** 2
    axes = list(kept_but(trace, call, [-2, -1]).axes)
    axes[-3] = grouped(trace, labels.axes[-3], size)
    return Labels(tuple(axes), constant=labels.constant)


@rule("pixel_unshuffle")
def pixel_unshuffle(trace: TraceState, call: Call) -> Labels:
    """(C, r H, r W) becomes (C r^2, H, W): every channel r^2 times."""
    labels, size = trace.labels(call.args[0]), call.arg(1, "downscale_factor") ** 2
    axes = list(kept_but(trace, call, [-2, -1]).axes)
    axes[-3] = repeated(labels.axes[-3], size)
    return Labels(tuple(axes), constant=labels.constant)


@rule("im2col")
def unfold(trace: TraceState, call: Call) -> Labels:
    """(.., C, H, W) becomes (.., C k, L): every channel once for each tap of the window."""
    labels = kept_but(trace, call, [-2, -1])
    taps = call.out.shape[-2] // call.args[0].shape[-3]
    return Labels((*labels.axes[:-3], repeated(labels.axes[-3], taps), None), constant=labels.constant)


@rule("col2im")
def fold(trace: TraceState, call: Call) -> Labels:
    """(.., C k, L) becomes (.., C, H, W): the k taps of one channel go together."""
    labels = kept_but(trace, call, [-1])
    taps = call.args[0].shape[-2] // call.out.shape[-3]
    return Labels((*labels.axes[:-2], grouped(trace, labels.axes[-2], taps), None, None), constant=labels.constant)


@rule("grid_sampler_2d", "grid_sampler_3d", "max_unpool2d", "max_unpool3d")
def sampled(trace: TraceState, call: Call) -> Labels:
    """Every channel is read at positions in space that a second tensor names."""
    spatial = int(next(c for c in call.name if c.isdigit()))
    source, where = call.args[:2]
    labels = kept_but(trace, call, list(range(source.dim() - spatial, source.dim())))
    channel = source.dim() - spatial - 1
    other = trace.labels(where)
    if call.name.startswith("max_unpool"):  # one position for each channel: they belong to the same channels
        met = trace.meet([source, where], source.shape, call.name)
        return Labels(tuple(a if d <= channel else None for d, a in enumerate(met.axes)), constant=labels.constant)
    for axis in other.axes:
        trace.freeze_axis(axis, f"{call.name} takes these neurons as positions")
    return labels


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(trace: TraceState, call: Call) -> Labels:
    """A Fourier transform over space; over the neuron axis it mixes neurons."""
    return kept_but(trace, call, call.dims(call.arg(1, "dim"), call.args[0].dim()))


@rule("view_as_real", "view_as_complex")
def pairs(trace: TraceState, call: Call) -> Labels:
    """Complex numbers as pairs of real ones along a last axis, and back."""
    labels = trace.labels(call.args[0])
    if call.name == "view_as_real":
        return Labels((*labels.axes, None), constant=labels.constant)
    trace.freeze_axis(labels.axes[-1], "view_as_complex takes these neurons as parts of one number")
    return Labels(labels.axes[:-1], constant=labels.constant)


@rule("cummax", "cummin", "topk", "kthvalue", "mode")
def chosen_along(trace: TraceState, call: Call) -> Any:
    """Choices along an axis of space, with their positions; over the neuron axis they mix neurons."""
    at = 2 if call.name in ("topk", "kthvalue") else 1
    dims = call.dims(call.arg(at, "dim", -1), call.args[0].dim())
    labels = kept_but(trace, call, dims)
    if call.out[0].dim() < call.args[0].dim():
        labels = Labels(tuple(a for d, a in enumerate(labels.axes) if d not in dims), constant=labels.constant)
    return [labels for _ in call.out]


@rule("gather", "take_along_dim")
def gather(trace: TraceState, call: Call) -> Any:
    """Values along one axis at named positions; along the others source and positions meet."""
    source, where = call.args[0], call.arg(2, "index")
    dim = call.arg(1, "dim") % max(source.dim(), 1)
    labels, index = trace.labels(source), trace.labels(where)
    if source.dim() != where.dim():
        return unknown(trace, call)
    axes: list[Axis | None] = []
    for at, (axis, other) in enumerate(zip(labels.axes, index.axes, strict=True)):
        if at == dim:
            for one in (axis, other):
                trace.freeze_axis(one, f"{call.name} picks neurons by index")
            axes.append(None)
        elif axis is not None and source.shape[at] != where.shape[at]:
            trace.freeze_axis(axis, f"{call.name} takes the first neurons alone")
            trace.freeze_axis(other, f"{call.name} takes the first neurons alone")
            axes.append(None)
        else:
            axes.append(along(trace, axis, other, where, at))
    return Labels(tuple(axes), constant=labels.constant)


def along(trace: TraceState, axis: Axis | None, other: Axis | None, where: Tensor, dim: int) -> Axis | None:
    """One axis of a gathered tensor. Neurons at one position are removed together; expanded ones are of no neuron."""
    if axis is not None and other is not None:
        return trace.unite(axis, other)
    if axis is not None and where.shape[dim] > 1 and where.stride(dim) != 0:
        trace.freeze_axis(axis, "gather with positions that have no neurons on this axis")
    if other is not None:
        trace.freeze_axis(other, "gather from a tensor that has no neurons on this axis")
    return axis


@rule("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(trace: TraceState, call: Call) -> Any:
    """Rows are added into rows (messages of a graph): along all other axes both tensors meet."""
    base, where, source = call.args[0], call.arg(2, "index"), call.arg(3, "src")
    dim = call.arg(1, "dim") % max(base.dim(), 1)
    if not isinstance(source, Tensor) or base.dim() != source.dim() or base.dim() != where.dim():
        return unknown(trace, call)
    sizes = [d for d in range(base.dim()) if d != dim]
    if any(base.shape[d] != source.shape[d] or where.shape[d] != source.shape[d] for d in sizes):
        return unknown(trace, call)
    for tensor in (base, source, where):
        trace.freeze_axis(trace.labels(tensor).axes[dim], f"{call.name} picks neurons by index")
    met = trace.meet([base, source], base.shape, call.name, skip=dim)
    index = trace.labels(where)
    axes = [None if d == dim else along(trace, a, index.axes[d], where, d) for d, a in enumerate(met.axes)]
    return Labels(tuple(axes), constant=met.constant)
