"""What is inside the arguments of an operation, without the cost of torch's general trees."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

NO_TENSORS = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format},
)


def tensors_among(tree: Any) -> Iterator[Tensor]:
    """All tensors in a nested structure, in its order."""
    kind = type(tree)
    if isinstance(tree, Tensor):
        yield tree
    elif kind is tuple or kind is list:
        for part in tree:
            yield from tensors_among(part)
    elif kind is dict:
        for part in tree.values():
            yield from tensors_among(part)
    elif kind not in NO_TENSORS:
        yield from (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def flat(arguments: Iterable[Any]) -> Iterator[Any]:
    """Arguments of an operation, and what is in those that are lists."""
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from argument
        else:
            yield argument
