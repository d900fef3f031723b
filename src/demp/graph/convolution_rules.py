"""Axis rules for convolutions: plain, strided, dilated, transposed, depthwise and grouped, 1d to 3d."""

from dataclasses import dataclass

from torch import Tensor

from demp.graph.contraction_rules import CONVOLUTIONS, bind_bias, maker, produced, read
from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.rules import rule, whole
from demp.graph.trace_state import TraceState


@dataclass(frozen=True)
class Convolution:
    """One call: its operands' labels, where its axes are, its arithmetic."""

    call: Call
    x: Labels
    kernel: Labels
    bias: Tensor | None
    channel: int
    groups: int
    transposed: bool
    flops: int

    @property
    def inputs(self) -> int:
        """Input channels of one group."""
        return self.call.args[0].shape[self.channel] // self.groups

    @property
    def outputs(self) -> int:
        """Output channels of one group."""
        return self.call.out.shape[self.channel] // self.groups


@rule(*CONVOLUTIONS)
def convolution(trace: TraceState, call: Call) -> Labels:
    """A convolution sums over the channels of its input, within each group."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    flops = 2 * (x if transposed else call.out).numel() * weight[0].numel()
    channel = 1 if x.dim() == weight.dim() else 0
    seen = Convolution(call, trace.labels(x), trace.labels(weight), bias, channel, groups, transposed, flops)
    if seen.kernel.scale is not None:
        trace.norm(seen.kernel.scale, None if bias is None else whole(trace, bias), seen.kernel.weight)
    if groups > 1 and seen.outputs <= groups and seen.x.axes[channel] is not None:
        return by_group(trace, seen)
    return by_position(trace, seen)


def by_position(trace: TraceState, seen: Convolution) -> Labels:
    """The channels at one position of every group go together: so every group keeps as many."""
    in_axis, out_axis = (0, 1) if seen.transposed else (1, 0)
    size = seen.outputs if seen.transposed else seen.outputs * seen.groups
    first, made = seen.kernel.axes[0], maker(trace, seen.kernel, out_axis, size)
    if seen.groups > 1 and first is not None:
        trace.elements.union(first.ids, first.ids[: len(first.ids) // seen.groups].repeat(seen.groups))
    if seen.transposed and made is not None and seen.groups > 1:
        made = Axis(made.ids.repeat(seen.groups), made.sites.repeat(seen.groups))
    made = bind_bias(trace, seen.kernel, made, seen.bias)
    read(trace, seen.x, seen.channel, seen.kernel, in_axis, operand=0)
    trace.contraction(seen.kernel.weight, seen.flops, seen.kernel.axes[in_axis], made)
    return produced(trace, seen.call.out, seen.x, seen.channel, made, seen.kernel, skip_dims=1)


def by_group(trace: TraceState, seen: Convolution) -> Labels:
    """A whole group goes or stays, with its channels on both sides; depthwise is one channel per group.

    What a group reads ends in its own outputs: they decide, and the convolution does not count as a consumer.
    """
    axis, own, source = seen.x.axes[seen.channel], seen.kernel.axes[0], seen.kernel.weight
    assert axis is not None
    if source is None or own is None or trace.own_axis(seen.kernel, own) != 0:
        trace.freeze_tensor(seen.call.args[0], "grouped convolution with a computed weight")
        trace.freeze_tensor(seen.call.args[1], "grouped convolution with a computed weight")
        bind_bias(trace, seen.kernel, own, seen.bias)
        trace.contraction(source, seen.flops, None, None)
        return trace.bare(seen.call.out)
    group = own.ids[:: len(own.ids) // seen.groups]
    ins, outs = (group.repeat_interleave(n) for n in (seen.inputs, seen.outputs))
    trace.elements.union(own.ids, ins if seen.transposed else outs)
    trace.elements.union(axis.ids, ins)
    trace.freeze_axis(seen.kernel.axes[1], "within the groups of a convolution")
    sites = axis.sites[:: seen.inputs].repeat_interleave(seen.inputs)
    if not bool((sites == axis.sites).all()):  # no one layer per group
        sites = sites * 0
    sites = sites[:: seen.inputs].repeat_interleave(seen.outputs)
    made = bind_bias(trace, seen.kernel, Axis(outs, sites, trace.tick(), source), seen.bias)
    trace.attribute(source, "groups", group)
    trace.contraction(source, seen.flops, None, made)
    axes: list[Axis | None] = [None] * seen.call.out.dim()
    axes[seen.channel] = made
    return Labels(tuple(axes))
