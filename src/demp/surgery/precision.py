"""A model in half precision as one in float32, for a proof: rounding in half precision would hide a wrong channel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, half-precision parameters and buffers are float32 copies, and no TF32 is used.

    It takes twice the memory of the model while it lasts.
    """
    copies: dict[int, Tensor] = {}
    places = []
    for module in model.modules():
        for space in (module._parameters, module._buffers):
            for name, tensor in space.items():
                if tensor is not None and tensor.dtype in HALF:
                    places.append((space, name, tensor))
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for space, name, tensor in places:
            if id(tensor) not in copies:
                wide = tensor.detach().float()
                copies[id(tensor)] = (
                    nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide
                )
            space[name] = copies[id(tensor)]
        yield
    finally:
        for space, name, tensor in places:
            space[name] = tensor
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def as_float32(inputs: Any) -> Any:
    """The same inputs, half-precision tensors as float32."""
    return tree_map_only(Tensor, lambda t: t.float() if t.dtype in HALF else t, inputs)
