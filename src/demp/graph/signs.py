"""Which tensors are certainly nowhere negative: among such numbers a zero is never the largest that matters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from demp.graph.elements import Labels
from demp.graph.operations import Call

MAKES = frozenset({
    "relu", "relu_", "hardtanh", "hardtanh_", "relu6", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "abs",
    "exp", "square", "_softmax", "softmax", "threshold", "clamp", "clamp_", "clamp_min",
})  # fmt: skip
"""Operations whose result is never negative: of those with bounds, if the lower one is not."""
KEEPS = frozenset({
    "add", "add_", "mul", "mul_", "div", "maximum", "cat", "stack", "sum", "mean", "amax", "max", "max_pool2d",
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "view", "_unsafe_view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "slice",
    "split", "split_with_sizes", "select", "unbind", "expand", "repeat", "detach", "alias", "clone", "contiguous",
    "_to_copy", "native_dropout", "dropout",
})  # fmt: skip
"""Operations that make nothing negative out of what is not."""
SCALES = frozenset({"add", "add_", "mul", "mul_", "div"})
LOWER = {"hardtanh": 1, "hardtanh_": 1, "clamp": 1, "clamp_": 1, "clamp_min": 1, "threshold": 2}
"""Where the lower bound stands among the arguments."""


def signed(call: Call, operands: Sequence[Labels], labels: Labels, written: dict[int, StorageWeakRef | None]) -> Labels:
    """The labels of a result, which say whether it may be negative.

    ``written`` collects memory into which numbers of any sign were written: views of it have labels of their own. The
    weak references keep addresses from being given to other memory.
    """
    if call.name in MAKES:
        found = bounded(call)
    else:
        found = call.name in KEEPS and bool(operands) and all(o.nonnegative for o in operands) and not negative(call)
        found = found and not (written and any(memory(t) in written for t in tree_leaves(call.args)))
    if not found and call.name.endswith("_") and call.args:
        place = call.args[0]
        written[memory(place)] = StorageWeakRef(place.untyped_storage()) if isinstance(place, Tensor) else None
    return labels if found == labels.nonnegative else replace(labels, nonnegative=found)


def memory(tensor: Any) -> int:
    """Which memory a tensor lies in; 0 for anything else."""
    return tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else 0


def bounded(call: Call) -> bool:
    """Is the lower bound of the result at least zero?"""
    at = LOWER.get(call.name)
    if at is None:
        return True
    low = call.arg(at, "min_val" if call.name.startswith("hardtanh") else "min", -1)
    at_least = isinstance(low, (int, float)) and low >= 0
    return at_least and (call.name != "threshold" or call.args[1] >= 0)


def negative(call: Call) -> bool:
    """Does the operation itself bring in a negative number (``x * -1``, ``alpha=-1``)?"""
    if call.name not in SCALES:
        return False
    numbers: list[Any] = [*call.args, *call.kwargs.values()]
    return any(isinstance(number, (int, float)) and number < 0 for number in numbers)
