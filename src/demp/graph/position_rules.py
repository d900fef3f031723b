"""Axis rules for products that sum over positions (of space, over the nodes of a graph): neurons stay apart."""

from dataclasses import replace

import torch
from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.heads import note_heads, paired, shared
from demp.graph.operations import Call
from demp.graph.parts import HEADS
from demp.graph.rules import pointwise, rule, unknown
from demp.graph.trace_state import TraceState

BATCH = "neurons on the batch axis of a batched product"
BATCHED = ("bmm", "baddbmm")
TABLE = "a buffer or a computed tensor, in a product that sums over positions"


def bare(labels: Labels, axis: int) -> bool:
    """Has this axis no neurons?"""
    return labels.axes[axis] is None


def bare_of(labels: Labels) -> Labels:
    """The same labels without neurons on any axis."""
    return replace(labels, axes=(None,) * len(labels.axes))


def over_positions(trace: TraceState, call: Call, left: Labels, right: Labels, flops: int) -> Labels:
    """A product of two activations that sums over positions: neurons of both sides stay apart.

    What lies on the batch axis of both sides (heads of attention) is multiplied each with its own.
    """
    for labels in (left, right):
        if labels.constant:
            for axis in labels.axes:
                trace.freeze_axis(axis, "the weight is computed in the forward")
    batch = None
    if call.name == "bmm" and right.copies and shared(trace, left.axes[0], 0, right):
        batch, right = left.axes[0], bare_of(right)
    elif call.name == "bmm":
        batch = paired(trace, left.axes[0], right.axes[0], BATCH)
    for labels, tensor in ((left, call.args[0]), (right, call.args[1])):
        if batch is not None and labels.axes[0] is not None:
            note_heads(trace, labels.axes[0], tensor.shape[2 if labels is left else 1])
    trace.contraction(None, flops, None, batch)
    lead = (batch,) if call.name == "bmm" else ()
    made = Labels((*lead, left.axes[-2], right.axes[-1]), constant=left.constant and right.constant)
    return made if batch is None else trace.site_on(made, 0, HEADS, certain=False)


def mixes_positions(trace: TraceState, factor: Labels, other: Labels, summed: int) -> bool:
    """Is this factor no weight but a table (a buffer, or computed from parameters), and are positions summed over?

    The other factor then has neurons, and none of them on the axis that is summed over.
    """
    if not factor.constant or other.constant or not bare(other, summed):
        return False
    table = factor.weight is None or factor.weight in trace.buffers
    return table and any(axis is not None for axis in other.axes)


def by_table(
    trace: TraceState, call: Call, factors: tuple[Tensor, Tensor], at: tuple[int, int | None], bias: Tensor | None
) -> Labels | None:
    """Labels of a product of which one factor is such a table; None if none is.

    ``at``: the axis of the second factor that is summed over, and the other one, if it has one.
    """
    (a, b), (b_in, b_out) = factors, at
    left, right = trace.labels(a), trace.labels(b)
    last = [] if b_out is None else [right.axes[b_out]]
    if mixes_positions(trace, right, left, a.dim() - 1):
        table, passing = b, [*left.axes[:-1], *[None for _ in last]]
    elif mixes_positions(trace, left, right, b_in):
        lead = right.axes[:1] if call.name in BATCHED else ()
        table, passing = a, [*lead, *[None] * (a.dim() - 1 - len(lead)), *last]
    else:
        return None
    return with_table(trace, call, table, passing, a.shape[-1], bias)


def with_table(
    trace: TraceState, call: Call, table: Tensor, passing: list[Axis | None], summed: int, bias: Tensor | None
) -> Labels:
    """A product of neurons and a table: what is ``passing`` on the axes of the result passes, the table stays.

    ``summed`` positions are added up. On the batch axis each neuron is multiplied with a matrix of its own: it passes
    if they are all one matrix.
    """
    for axis in trace.labels(table).axes:
        trace.freeze_axis(axis, TABLE)
    if call.name in BATCHED and passing[0] is not None and not is_repeated(table):
        trace.freeze_axis(passing[0], BATCH)
        passing = [None, *passing[1:]]
    made = next((axis for axis in reversed(passing) if axis is not None), None)
    trace.contraction(None, 2 * call.out.numel() * summed, None, made)
    return shifted(trace, call, Labels(tuple(passing)), bias)


def note_mixer(trace: TraceState, weight: Labels, other: Labels) -> None:
    """A parameter on the left may be a learned adjacency: an activation behind it is one of all neurons there.

    Its rows count as neurons, too. What is offered in the end is what weights read.
    """
    if weight.source and len(other.axes) > 1 and bare(other, -2) and not trace.recording.offer.streams:
        trace.mixers.add(weight.source)


def shifted(trace: TraceState, call: Call, product: Labels, bias: Tensor | None) -> Labels:
    """What comes out of a product when a bias is added: the same as of a sum of both."""
    if bias is None:
        return product
    trace.note(call.out, product)
    return pointwise(trace, Call("add", torch.ops.aten.add.Tensor, (bias, call.out), {}, call.out))


def is_repeated(table: Tensor) -> bool:
    """Is it one matrix, expanded along the batch axis?"""
    return table.layout is torch.strided and (table.stride(0) == 0 or table.shape[0] == 1)


@rule("_sparse_addmm")
def sparse_product(trace: TraceState, call: Call) -> Labels | None:
    """A sparse matrix (an adjacency) times a dense one, plus another: products of `torch.sparse`."""
    bias, left, right = call.args[:3]
    labels = trace.labels(left), trace.labels(right)
    plain = all(axis is None for axis in labels[0].axes)
    if not (plain and bare(labels[1], 0)) and not mixes_positions(trace, *labels, 0):
        return unknown(trace, call)
    base = None if call.kwargs.get("beta") == 0 else bias
    return with_table(trace, call, left, [None, labels[1].axes[1]], right.shape[0], base)
