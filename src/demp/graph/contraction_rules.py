"""Axis rules for matrix products, and what all contractions share: where neurons are born and where they are read."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from demp.graph.elements import Axis, Labels
from demp.graph.operations import Call
from demp.graph.position_rules import BATCH, BATCHED, bare, by_table, note_mixer, over_positions, shifted
from demp.graph.recording import ReadSeen
from demp.graph.rules import rule, whole
from demp.graph.trace_state import TraceState

CONVOLUTIONS = ("convolution", "convolution_overrideable", "_convolution")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear")
CONTRACTIONS = frozenset(CONVOLUTIONS + PRODUCTS)
"""ATen operations that sum over a neuron axis and whose operand can be observed."""
SHIFTED = ("addmm", "baddbmm", "addmv")
"""Products whose first argument is added to what they make."""
STANDARDISED = "read by a weight that is standardised over its inputs: without one of them every output would change"


def operand_of(name: str, args: tuple[Any, ...], weight: int) -> tuple[int, int] | None:
    """Which argument a contraction reads with the weight at this position, and the axis that it sums over.

    The same line of a model is another operation on another device or in another memory format (``mm`` and a sum
    instead of ``addmm``), with its operands at other positions. None if the weight is no factor.
    """
    if name in CONVOLUTIONS:
        return (0, 1 if args[0].dim() == args[1].dim() else 0) if weight == 1 else None
    first = 1 if name in SHIFTED else 0
    if weight not in (first, first + 1):
        return None
    operand = 2 * first + 1 - weight
    ndim = args[operand].dim()
    last = weight > operand or (name == "linear" and ndim < 3)
    return operand, ndim - 1 if last else max(ndim - 2, 0)


@dataclass(frozen=True)
class Product:
    """The two factors of a matrix product, the axes of each, and what is added to the result."""

    call: Call
    first: int
    """Position of the left factor among the arguments."""
    left: Labels
    right: Labels
    left_in: int
    """The axis of the left factor that is summed over."""
    left_out: int | None
    """Its axis that the result keeps beside batch axes; None: of a vector, or the rows are examples."""
    right_in: int
    right_out: int | None
    bias: Tensor | None
    flops: int

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The left and the right tensor."""
        return self.call.args[self.first], self.call.args[self.first + 1]


def product_of(trace: TraceState, call: Call) -> Product:
    """The product that an operation computes. ``linear`` takes its weight transposed: (outputs, inputs)."""
    shift, linear = call.name in SHIFTED, call.name == "linear"
    first = 1 if shift else 0
    a, b = call.args[first], call.args[first + 1]
    return Product(
        call,
        first,
        trace.labels(a),
        trace.labels(b),
        left_in=a.dim() - 1,
        left_out=a.dim() - 2 if a.dim() > 1 and not linear else None,
        right_in=(1 if linear else 0) if b.dim() < 3 else b.dim() - 2,
        right_out=None if b.dim() == 1 else (0 if linear else b.dim() - 1),
        bias=call.args[0] if shift else (call.arg(2, "bias") if linear else None),
        flops=2 * call.out.numel() * a.shape[-1],
    )


@rule(*PRODUCTS)
def matrix_product(trace: TraceState, call: Call) -> Labels:
    """Products of two operands over their shared axis; one of them is usually a weight."""
    product = product_of(trace, call)
    left, right = product.left, product.right
    by_position = by_table(trace, call, product.factors, (product.right_in, product.right_out), product.bias)
    if by_position is not None:
        return by_position
    if right.weight is not None and not left.constant:
        return weight_on_the_right(trace, product)
    if left.source is not None and not right.constant and product.left_out is not None:
        return weight_on_the_left(trace, product, product.left_out)
    separate = bare(left, product.left_in) and bare(right, product.right_in)
    if call.name == "addmm" and separate and not (left.constant or right.constant):
        return shifted(trace, call, over_positions(trace, call, left, right, product.flops), product.bias)
    if product.bias is None and call.name in ("mm", "bmm") and (separate or not (left.constant or right.constant)):
        for axis in (left.axes[product.left_in], right.axes[product.right_in]):
            trace.freeze_axis(axis, "product of two activations")
        return over_positions(trace, call, left, right, product.flops)
    return frozen_product(trace, product)


def weight_on_the_right(trace: TraceState, product: Product) -> Labels:
    """The usual layer: a weight reads the left factor's neurons and makes those of the result."""
    call, left, right, right_out = product.call, product.left, product.right, product.right_out
    made = bind_bias(trace, right, maker(trace, right, right_out, call.out.shape[-1]), product.bias)
    read(trace, left, product.left_in, right, product.right_in, operand=product.first)
    trace.contraction(right.weight, product.flops, right.axes[product.right_in], made)
    if call.name in BATCHED:
        freeze_batch(trace, left, right)
    return produced(trace, call.out, left, product.left_in, made, right, at_end=right_out is not None)


def weight_on_the_left(trace: TraceState, product: Product, left_out: int) -> Labels:
    """A weight times activations: its rows make neurons, which lie on the last axis but one of the result."""
    call, left, right, bias = product.call, product.left, product.right, product.bias
    made = left.axes[left_out]
    note_mixer(trace, left, right)
    if isinstance(bias, Tensor):
        trace.freeze_tensor(bias, "bias of a product with the weight on the left")
        trace.freeze_axis(made, "bias of a product with the weight on the left")
    read(trace, right, product.right_in, left, product.left_in, operand=product.first + 1)
    trace.contraction(left.source, product.flops, left.axes[product.left_in], made)
    if call.name == "bmm":
        freeze_batch(trace, left, right)
    out: list[Axis | None] = [None] * call.out.dim()
    if made is not None:
        at = call.out.dim() - (2 if product.right_out is not None else 1)
        out[at] = Axis(made.ids, made.sites, trace.tick(), left.source)
    if product.right_out is not None:
        out[-1] = right.axes[product.right_out]
    return Labels(tuple(out))


def frozen_product(trace: TraceState, product: Product) -> Labels:
    """Neither factor is a weight of its own, and positions are not all that is summed over: neurons of both stay."""
    call, left, right = product.call, product.left, product.right
    computed = left.constant or right.constant
    why = "the weight is computed in the forward" if computed else "product of two activations"
    for tensor in (*product.factors, product.bias):
        if isinstance(tensor, Tensor):
            trace.freeze_tensor(tensor, why)
    trace.contraction(None, product.flops, None, None)
    out: list[Axis | None] = [None] * call.out.dim()
    if right.constant and not left.constant and product.right_out is not None:
        made = maker(trace, right, product.right_out, call.out.shape[-1])
        out[-1] = None if made is None else Axis(made.ids, made.without_sites().sites, trace.tick())
    return Labels(tuple(out), constant=left.constant and right.constant)


def maker(trace: TraceState, weight: Labels, axis: int | None, size: int) -> Axis | None:
    """The axis of a weight that makes neurons; neurons of a computed weight stay."""
    if axis is None:
        return None
    own = weight.axes[axis]
    if own is None:
        return trace.fixed(size, f"made by a computed weight (at {trace.where()})")
    if trace.own_axis(weight, own) is None:
        trace.freeze_axis(own, "made by a computed weight or a part of one")
    return own


def freeze_batch(trace: TraceState, left: Labels, right: Labels) -> None:
    """Neurons on the batch axis of a batched product stay."""
    for labels in (left, right):
        if len(labels.axes) == 3:
            trace.freeze_axis(labels.axes[0], BATCH)


def bind_bias(trace: TraceState, weight: Labels, made: Axis | None, bias: object) -> Axis | None:
    """The neurons of the produced axis are removed together with the entries of the bias."""
    if isinstance(bias, Tensor) and bias.dim() > 0:
        vector = trace.labels(bias).axes[-1]
        if made is None or vector is None or len(vector.ids) != len(made.ids):
            trace.freeze_tensor(bias, "bias that does not match the produced axis")
            trace.freeze_axis(made, "bias that does not match the produced axis")
        else:
            trace.elements.union(made.ids, vector.ids)
            trace.bias(weight.weight, whole(trace, bias))
    return made


def read(trace: TraceState, activation: Labels, axis: int, weight: Labels, weight_axis: int, *, operand: int) -> None:
    """The contraction sums over the activation's axis: a consumer of its neurons."""
    neurons, slices = activation.axes[axis], weight.axes[weight_axis]
    use = 0 if weight.source is None else trace.use(weight.source)
    if neurons is None:
        trace.freeze_axis(slices, "reads a model input or a tensor without neurons")
        return
    own = trace.own_axis(weight, slices)
    if slices is None or weight.source is None or own is None:
        why = STANDARDISED if slices is None and weight.computed_from else "read by a computed weight or a part of one"
        if weight.source is None and own is not None and slices is not None and len(slices.ids) == len(neurons.ids):
            trace.elements.union(neurons.ids, slices.ids)  # and so is the reason, if a mean runs over the slices
        trace.freeze_axis(neurons, why)
        trace.freeze_axis(slices, "a computed weight")
        return
    groups = len(neurons.ids) // len(slices.ids)  # a grouped convolution reads with one slice in each group
    trace.elements.union(neurons.ids, slices.ids if groups == 1 else slices.ids.repeat(groups))
    trace.read(ReadSeen(weight.source, use, operand, axis, own, neurons))


def produced(
    trace: TraceState,
    out: Tensor,
    source: Labels,
    axis: int,
    made: Axis | None,
    weight: Labels,
    *,
    skip_dims: int = 0,
    at_end: bool = False,
) -> Labels:
    """Labels of the output: the weight's axis in place of the one that was read."""
    axes: list[Axis | None] = [None] * out.dim()
    lead = source.axes[: axis if skip_dims else len(source.axes) - 1]
    for dim, kept in enumerate(lead):
        axes[dim] = kept
    if made is not None and (skip_dims or at_end):
        axes[axis if skip_dims else out.dim() - 1] = Axis(
            made.ids, made.without_sites().sites, trace.tick(), weight.weight
        )
    if skip_dims:
        for kept in source.axes[axis + 1 :]:
            trace.freeze_axis(kept, "convolution runs over the neuron axis")
    return Labels(tuple(axes))
