"""Axis rule for sums: where a residual stream meets a branch, each side may keep its own neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.parts import HEADS
from demp.graph.recording import JoinSeen
from demp.graph.rules import pointwise, rule
from demp.graph.sums import IN_PLACE, JoinPlan

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer


@rule("add", "add_")
def addition(tracer: Tracer, call: Call) -> Any:
    """A stream of activations plus a branch that no activation has touched: neither binds the other."""
    found = residual(tracer, call)
    if found is None or tracer.sum_at is None:
        return pointwise(tracer, call)
    operand, axis, stream, branch = found
    index = torch.arange(len(branch.ids), device="cpu")
    tracer.recording.joins.append(JoinSeen(*tracer.sum_at[:2], operand, axis, stream, branch, index, index, False))
    return summed(tracer, branch, axis, call.out.dim())


def residual(tracer: Tracer, call: Call) -> tuple[int, int, Axis, Axis] | None:
    """(operand that is the stream, axis, stream, branch) if the call is such a sum."""
    if tracer.sum_at is None or len(call.args) != 2 or not all(isinstance(a, Tensor) for a in call.args):
        return None
    if call.args[0].shape != call.args[1].shape:
        return None
    axes = [tracer.labels(operand).axes for operand in call.args]
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
    if any(tracer.recording.sites[site].kind == HEADS for site in sites_of(tracer, stream)):
        return None  # scores of attention and their bias go head by head
    if operand == 0 and tracer.sum_at[2] in IN_PLACE:
        return None  # the sum would have to be written into a tensor of another width
    return operand, carried[0], stream, branch


def sites_of(tracer: Tracer, axis: Axis) -> set[int]:
    """Sites whose output flows along an axis."""
    return set().union(*(tracer.elements.sites_of(mark) for mark in axis.sites.unique().tolist()))


def summed(tracer: Tracer, branch: Axis, axis: int, ndim: int) -> Labels:
    """Labels of the sum: the neurons of the branch, made by no single weight."""
    axes: list[Axis | None] = [None] * ndim
    axes[axis] = Axis(branch.ids, branch.sites, tracer.tick(), None)
    return Labels(tuple(axes))


def planned(tracer: Tracer, seat: tuple[str, int], args: tuple[Any, ...], plan: JoinPlan) -> Labels:
    """A sum that an earlier cut has planned: the same rule, with the channels that meet."""
    branch_labels, stream_labels = tracer.labels(args[1 - plan.stream]), tracer.labels(args[plan.stream])
    stream, branch = stream_labels.axes[plan.axis], branch_labels.axes[plan.axis]
    assert stream is not None and branch is not None
    target, source = plan.indices()
    tracer.recording.joins.append(JoinSeen(*seat, plan.stream, plan.axis, stream, branch, source, target, True))
    return summed(tracer, branch, plan.axis, args[0].dim())
