"""A dispatch mode that follows neurons from axis to axis through one forward."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from demp.graph import (  # noqa: F401  (rules)
    attention_rules,
    convolution_rules,
    group_rules,
    index_rules,
    join_rules,
    shape_rules,
    space_rules,
)
from demp.graph.alike import forget_alike, with_alike
from demp.graph.drawn import FILLS, forget_uniform, is_noise
from demp.graph.elements import Labels
from demp.graph.grids import Grid
from demp.graph.heads import repeats_one
from demp.graph.operations import Call
from demp.graph.rules import Rule, find, unknown
from demp.graph.shuffle_rules import moved, settled, taken_apart
from demp.graph.signs import signed
from demp.graph.trace_state import TraceState
from demp.graph.zeros import follow_lifted


class Tracer(TorchDispatchMode):
    """Follows neurons through one forward, operation by operation. What is known of them is in ``trace``."""

    def __init__(self, trace: TraceState) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then label what came out."""
        kwargs, trace = kwargs or {}, self.trace
        if trace.paused:
            return func(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            dense = args[0].layout is torch.strided
            trace.layout_before = tuple(args[0].shape), args[0].stride() if dense else ()
        out = func(*args, **kwargs)
        space, _, name = func._schema.name.partition("::")
        with torch._C._DisableTorchDispatch():  # what the rules compute is no operation of the model
            follow_operation(trace, Call(name if space == "aten" else func._schema.name, func, args, kwargs, out))
        return out


def follow_operation(trace: TraceState, call: Call) -> None:
    """Label what came out of an operation."""
    rule = find(call.op, call.name) if call.op.namespace in ("aten", "prims") else unknown
    grid = trace.raw(call.args[0]) if call.args and isinstance(call.args[0], Tensor) else None
    if isinstance(grid, Grid) and stays_grid(trace, rule, call, grid):
        return
    result = rule(trace, call)
    written = call.op._schema.is_mutable
    if trace.filled and (call.op.is_view or written):
        found = forget_uniform(trace.known, trace.tensors(call.args), written=written)
        trace.repeated = trace.repeated or found
    if trace.repeated and written:
        forget_alike(trace, call)
    operands = [trace.labels(t) for t in trace.tensors((call.args, call.kwargs))]
    for labels in operands:
        if labels.chosen is not None:
            trace.freeze_axis(labels.chosen, f"{call.name} uses positions of neurons")
    lifted = follow_lifted(trace, call) if trace.recording.offer.bare else ""
    outs, results = (list(one) if isinstance(one, (tuple, list)) else [one] for one in (call.out, result))
    made = []
    for tensor, found in zip(outs, results + [None] * len(outs), strict=False):
        if isinstance(tensor, Tensor):
            labels = completed(trace, call, operands, tensor, found, lifted)
            trace.note(tensor, labels)
            made.append(labels)
    trace.frames.operation(trace.running(), call.name, operands, made)


def stays_grid(trace: TraceState, rule: Rule, call: Call, grid: Grid) -> bool:
    """Does the operation only move the axes of a grid? Then what came out is noted as one, too."""
    parts = taken_apart(call, grid)
    if parts is not None:
        trace.settle(call.args[0], parts=parts)
        return False
    after = moved(call, grid, settled(trace, rule, call, trace.call_at))
    if after is not None:
        trace.note(call.out, after)
    return after is not None


def completed(
    trace: TraceState, call: Call, operands: list[Labels], tensor: Tensor, labels: Labels | None, lifted: str
) -> Labels:
    """What a rule found of a tensor, and what holds of it whatever the rule; neurons in a wrong number of axes stay."""
    if labels is not None and len(labels.axes) != tensor.dim():
        for axis in labels.axes:
            trace.freeze_axis(axis, f"{call.name} in an unexpected form")
        labels = None
    if trace.training and is_noise(call, operands):
        labels = Labels((None,) * tensor.dim(), noise=True)
    if labels is None:
        labels = trace.bare(tensor, constant=bool(operands) and all(one.constant for one in operands))
    labels = replace(labels, lifted=lifted) if lifted else labels
    if operands and repeats_one(call, operands[0]):
        labels = replace(labels, copies=True)
    if call.name in FILLS:
        labels, trace.filled = replace(labels, uniform=True), True
    labels = with_alike(trace, call, tensor, labels)
    return signed(call, operands, labels, trace.written)
