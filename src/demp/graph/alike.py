"""Tensors that are the same all along an axis, as a mask is that was made for every head: there they bind no neuron.

An axis of length 1 counts only if the forward made it. Another one may be the batch, of which the examples hold one.
"""

from dataclasses import replace

import torch
from torch import Tensor

from demp.graph.elements import Labels
from demp.graph.grids import Grid
from demp.graph.operations import Call
from demp.graph.regrouping import regroup
from demp.graph.signs import memory
from demp.graph.trace_state import TraceState

COPIES = frozenset({"clone", "contiguous", "_to_copy", "detach", "alias", "lift_fresh", "slice", "narrow"})
"""Operations that leave every axis where it is."""
VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
MOVES = frozenset({"transpose", "permute", "movedim", "t", "unsqueeze"})
MAKERS = frozenset({"expand", "repeat", "unsqueeze"})
"""Operations that make an axis along which everything is the same."""


def with_alike(trace: TraceState, call: Call, tensor: Tensor, labels: Labels) -> Labels:
    """The labels of a result, which say along which axes without neurons it is the same everywhere."""
    if call.name in MAKERS or trace.filled or trace.repeated:
        found = frozenset(dim for dim in along(trace, call, tensor) if not labels.axes[dim])
        if found:
            trace.repeated = True
            return replace(labels, alike=found)
    return labels


def along(trace: TraceState, call: Call, out: Tensor) -> set[int]:
    """Axes along which a result is the same."""
    if call.op._schema.is_mutable or not call.args:
        return set()
    tags = call.op.tags
    if torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags:
        return of_all(trace, call, out)
    source = call.args[0]
    if not isinstance(source, Tensor):
        return set()
    before = known(trace, source)
    if call.name in ("expand", "repeat"):
        lead = out.dim() - source.dim()
        return set(range(lead)) | {lead + dim for dim in before | grown(call, source, out)}
    if call.name in MOVES:
        return moved(call, source, before)
    if call.name in COPIES:
        return before
    return regrouped(source, out, before) if call.name in VIEWS else set()


def grown(call: Call, source: Tensor, out: Tensor) -> set[int]:
    """Axes of length 1 that are expanded: with several examples in the batch none of them could be the batch."""
    lead = out.dim() - source.dim()
    found = {dim for dim, size in enumerate(source.shape) if size == 1 and out.shape[lead + dim] > 1}
    return found if call.name == "expand" else set()


def known(trace: TraceState, tensor: Tensor) -> set[int]:
    """Axes along which an operand is the same."""
    labels = trace.raw(tensor)
    if not isinstance(labels, Labels):
        return set()
    return set(range(tensor.dim())) if labels.uniform else set(labels.alike)


def of_all(trace: TraceState, call: Call, out: Tensor) -> set[int]:
    """Axes along which all operands of an element-wise operation are the same, or are broadcast."""
    found = set(range(out.dim()))
    for tensor in trace.tensors((call.args, call.kwargs)):
        lead, same = out.dim() - tensor.dim(), known(trace, tensor)
        shaped = {dim for dim, size in enumerate(tensor.shape) if size == out.shape[lead + dim]}
        found -= {lead + dim for dim in shaped - same}
    return found


def regrouped(source: Tensor, out: Tensor, before: set[int]) -> set[int]:
    """The axes of a view that are made of such axes alone; none where an axis of one example may be regrouped, too."""
    if any(size == 1 and dim not in before for dim, size in enumerate(source.shape)):
        return set()
    found, at = set[int](), 0
    for dims, sizes in regroup(tuple(source.shape), tuple(out.shape)):
        if before.issuperset(dims):
            found |= set(range(at, at + len(sizes)))
        at += len(sizes)
    return found


def moved(call: Call, source: Tensor, before: set[int]) -> set[int]:
    """Where such axes lie after others were moved or put between them, and those that were made."""
    marked = torch.empty(tuple(3 if dim in before else 2 for dim in range(source.dim())), device="meta")
    return {dim for dim, size in enumerate(call.op(marked, *call.args[1:], **call.kwargs).shape) if size != 2}


def forget_alike(trace: TraceState, call: Call) -> None:
    """What is written into may differ from now on, and whatever shares its memory."""
    written = [
        call.arg(at, argument.name)
        for at, argument in enumerate(call.op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    places = {memory(tensor) for tensor in trace.tensors(written)}
    for tensor, labels in list(trace.known.items()):
        if not isinstance(labels, Grid) and labels.alike and memory(tensor) in places:
            trace.note(tensor, replace(labels, alike=frozenset()))
