"""What a model gives and holds, kept and compared."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All output tensors in evaluation mode, copied."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    out = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    for module, mode in modes.items():
        module.training = mode
    return [leaf.clone() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def gap(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest absolute difference."""
    assert [t.shape for t in before] == [t.shape for t in after]
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(before, after, strict=True))


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def same_state(before: dict[str, Tensor], model: nn.Module) -> bool:
    """Is every parameter and buffer as it was, to the bit?"""
    now = tensors_of(model)
    return before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in now)


def same_tree(before: Any, now: Any) -> bool:
    """Are two nested structures equal, tensors to the bit?"""
    if isinstance(before, Tensor):
        return isinstance(now, Tensor) and torch.equal(before, now)
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(same_tree(before[key], now[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(now) and all(same_tree(a, b) for a, b in zip(before, now, strict=True))
    return before == now
