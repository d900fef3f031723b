"""Which tensors hold the outputs of activations as they are, moved or pooled: zeros there are zeros of neurons."""

from collections.abc import Sequence
from dataclasses import replace

from demp.graph.activations import Call, kind_of
from demp.graph.elements import Labels
from demp.graph.signs import memory

MOVES = frozenset({
    "cat", "stack", "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "mean",
    "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "view", "_unsafe_view", "reshape", "permute",
    "transpose", "unsqueeze", "squeeze", "slice", "split", "split_with_sizes", "unbind", "expand", "detach", "alias",
    "clone", "contiguous", "_to_copy", "as_strided_", "native_dropout", "dropout",
})  # fmt: skip
"""Operations that only move activations, or average them in each channel."""


def as_activated(call: Call, operands: Sequence[Labels], labels: Labels, rewritten: set[int]) -> Labels:
    """The labels of a result, which say in which memory activations lie as they are.

    ``rewritten`` collects memory that was written into since: other views of it still have their old labels.
    """
    found = kind_of(call) is not None
    if call.name in MOVES and operands:
        found = all(one.activated and one.activated not in rewritten for one in operands)
    if call.name.endswith("_") and not found and call.args:
        rewritten.add(memory(call.args[0]))
    out = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
    return replace(labels, activated=memory(out)) if found else labels
