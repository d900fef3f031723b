"""What a model is called with and what it returns: nested values, the tensors in them, copies of them."""

import copy
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

WHOLE = (type, nn.Module, FunctionType, ModuleType, torch.device, torch.dtype, str, bytes, int, float, complex)
"""Values that no forward takes apart or writes into."""


def copied(tree: Any) -> Any:
    """The same nested structure with copies of the tensors: a forward may write into its inputs.

    Containers are new ones, and so are plain objects (dataclasses, batches of graphs) that hold tensors.
    """
    return tree_map(copy_of, tree)


def on_meta(tree: Any) -> Any:
    """The same nested structure with every tensor on the meta device; plain objects are copied as they are."""
    return tree_map(lambda leaf: leaf.detach().to("meta") if isinstance(leaf, Tensor) else copy_of(leaf), tree)


def copy_of(leaf: Any) -> Any:
    """A tensor or a plain object with tensors, copied; everything else as it is."""
    if isinstance(leaf, Tensor):
        return torch.clone(leaf)
    if leaf is None or isinstance(leaf, (*WHOLE, Iterator)):
        return leaf
    held = list(held_in(leaf, caches=True))
    if not any(isinstance(value, Tensor) for value in held):
        return leaf
    known: dict[int, Any] = {
        id(value): torch.clone(value) if isinstance(value, Tensor) else value
        for value in held
        if isinstance(value, (Tensor, nn.Module))
    }
    try:
        return copy.deepcopy(leaf, known)
    except Exception:  # an object that cannot be copied is passed as it is, as the user's own loop does
        return leaf


def is_cache(leaf: Any) -> bool:
    """Is it a cache of keys and values, which a model of transformers returns to be called with it again?"""
    return any((k.__module__, k.__name__) == ("transformers.cache_utils", "Cache") for k in type(leaf).__mro__)


def tensors_in(tree: Any, *, caches: bool = False) -> list[Tensor]:
    """All tensors of a nested output, also those that plain objects carry as attributes; of caches only if asked."""
    return [value for value in held_in(tree, caches=caches) if isinstance(value, Tensor)]


def held_in(tree: Any, *, caches: bool) -> Iterator[Any]:
    """Every value of a nested structure, then those that plain objects in it carry; nothing inside of modules."""
    seen: set[int] = set()
    todo = list(tree_leaves(tree))
    while todo:
        leaf = todo.pop(0)
        if id(leaf) in seen and not isinstance(leaf, Tensor):
            continue
        seen.add(id(leaf))
        yield leaf
        if not isinstance(leaf, (Tensor, type, nn.Module)) and (caches or not is_cache(leaf)):
            names = getattr(leaf, "__dataclass_fields__", {}) or getattr(leaf, "__dict__", {})
            todo.extend(tree_leaves([getattr(leaf, name, None) for name in names]))
