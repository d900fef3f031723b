"""Axis rule for sums: where a residual stream meets a branch, each side may keep its own neurons."""

from typing import Any

import torch
from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.parts import HEADS
from demp.graph.recording import JoinSeen
from demp.graph.rules import pointwise, rule
from demp.graph.sums import IN_PLACE, JoinPlan
from demp.graph.trace_state import TraceState


@rule("add", "add_")
def addition(trace: TraceState, call: Call) -> Any:
    """A stream of activations plus a branch that no activation has touched: neither binds the other."""
    found = residual(trace, call)
    if found is None or trace.sum_at is None:
        return pointwise(trace, call)
    operand, axis, stream, branch = found
    index = torch.arange(len(branch.ids), device="cpu")
    trace.recording.joins.append(JoinSeen(*trace.sum_at[:2], operand, axis, stream, branch, index, index, False))
    return summed(trace, branch, axis, call.out.dim())


def residual(trace: TraceState, call: Call) -> tuple[int, int, Axis, Axis] | None:
    """(operand that is the stream, axis, stream, branch) if the call is such a sum."""
    if trace.sum_at is None or len(call.args) != 2 or not all(isinstance(a, Tensor) for a in call.args):
        return None
    if call.args[0].shape != call.args[1].shape:
        return None
    axes = [trace.labels(operand).axes for operand in call.args]
    carried = [d for d, (x, y) in enumerate(zip(*axes, strict=True)) if x is not None or y is not None]
    if len(carried) != 1:
        return None
    sides = [own[carried[0]] for own in axes]
    if sides[0] is None or sides[1] is None:
        return None
    operand = 0 if bool((sides[0].sites != 0).all()) else 1
    stream, branch = sides[operand], sides[1 - operand]
    assert stream is not None and branch is not None
    if bool((stream.sites == 0).any()) or bool((branch.sites != 0).any()):
        return None
    if any(trace.recording.sites[site].kind == HEADS for site in sites_of(trace, stream)):
        return None  # scores of attention and their bias go head by head
    if operand == 0 and trace.sum_at[2] in IN_PLACE:
        return None  # the sum would have to be written into a tensor of another width
    return operand, carried[0], stream, branch


def sites_of(trace: TraceState, axis: Axis) -> set[int]:
    """Sites whose output flows along an axis."""
    return set().union(*(trace.elements.sites_of(mark) for mark in axis.sites.unique().tolist()))


def summed(trace: TraceState, branch: Axis, axis: int, ndim: int) -> Labels:
    """Labels of the sum: the neurons of the branch, made by no single weight."""
    axes: list[Axis | None] = [None] * ndim
    axes[axis] = Axis(branch.ids, branch.sites, trace.tick(), None)
    return Labels(tuple(axes))


def planned(trace: TraceState, seat: tuple[str, int], args: tuple[Any, ...], plan: JoinPlan) -> Labels:
    """A sum that an earlier cut has planned: the same rule, with the channels that meet."""
    branch_labels, stream_labels = trace.labels(args[1 - plan.stream]), trace.labels(args[plan.stream])
    stream, branch = stream_labels.axes[plan.axis], branch_labels.axes[plan.axis]
    assert stream is not None and branch is not None
    target, source = plan.indices()
    trace.recording.joins.append(JoinSeen(*seat, plan.stream, plan.axis, stream, branch, source, target, True))
    return summed(trace, branch, plan.axis, args[0].dim())
