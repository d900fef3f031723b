"""A model in training mode for a forward of demp's own, which leaves nothing changed."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from demp.graph.forward import evaluating, hooks_off
from demp.graph.leftovers import leaving_nothing
from demp.graph.random_state import SEED, random_kept


@contextmanager
def training(model: nn.Module, ahead: int = 0, *, dropout: bool = False) -> Iterator[None]:
    """Training mode without gradients, hooks and autocast, drawing from a seed; nothing stays changed.

    ``ahead``: so many numbers further on in what the seed draws. Without ``dropout`` its layers pass everything on.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    cuda = [device.index or 0] if device.type == "cuda" else []
    with (
        hooks_off(model),
        evaluating(model, training=True),
        replaced(model, lambda tensor: not is_weight(tensor), torch.clone),
        leaving_nothing(model),
        torch.no_grad(),
        random_kept(cuda, seed=SEED),
        torch.autocast(device.type, enabled=False),
    ):
        for module in model.modules():
            if isinstance(module, _DropoutNd) and not dropout:
                module.training = False
        numpy: Any = sys.modules.get("numpy")
        for _ in range(ahead):
            _ = (
                random.random(),
                torch.rand(1, device=device),
                torch.rand(1, device="cpu"),
                numpy and numpy.random.rand(),
            )
        yield


def is_weight(tensor: Tensor) -> bool:
    """Is it a parameter that trains? A training forward may write into all others, and into buffers."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


@contextmanager
def replaced(model: nn.Module, which: Callable[[Tensor], bool], make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, parameters and buffers of this kind are what ``make`` makes of them; no tensor is written into."""
    copies: dict[int, Tensor] = {}
    places = []
    for module in model.modules():
        for space in (module._buffers, module._parameters):
            for name, tensor in space.items():
                if tensor is not None and which(tensor):
                    places.append((space, name, tensor))
                    copies.setdefault(id(tensor), like(tensor, make))
    try:
        for space, name, tensor in places:
            space[name] = copies[id(tensor)]
        yield
    finally:
        for space, name, tensor in places:
            space[name] = tensor


def like(tensor: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What is made of a buffer's or a parameter's values, of the same kind."""
    made = make(tensor.detach())
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
