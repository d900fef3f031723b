"""One tensor in pieces on several ranks (a ``DTensor``): its own piece, the whole, and other values for it.

Every function takes ordinary tensors as well.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def is_sharded(tensor: Any) -> bool:
    """Return whether the tensor is a ``DTensor``, sharded over several ranks."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_piece(tensor: Any) -> Any:
    """The piece on this rank, in the same memory; any other tensor is its own piece."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole_tensor(tensor: Any) -> Tensor:
    """All pieces together; every rank must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(whole: Tensor, like: Any) -> Tensor:
    """A tensor that every rank holds, in pieces on the mesh of another."""
    if not is_sharded(like) or is_sharded(whole):
        return whole
    distribute = sys.modules["torch.distributed.tensor"].distribute_tensor
    return distribute(whole, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def swap_in(tensor: Tensor, value: Tensor) -> None:
    """Swap another sharded value into a tensor object; its attributes and hooks stay with the object."""
    kept = dict(vars(tensor))
    hooks = {name: getattr(tensor, name) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}
    fresh = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value.detach()
    torch.utils.swap_tensors(tensor, fresh)
    vars(tensor).clear()
    vars(tensor).update(kept)
    for name, value_of_hook in hooks.items():
        setattr(tensor, name, value_of_hook)


def nonzero_along(tensors: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Per index of one axis of each tensor: is any entry different from zero, in whichever piece?"""
    found = [where_nonzero(local_piece(tensor), axis) for tensor, axis in tensors]
    pieces = [at for at, (tensor, _) in enumerate(tensors) if is_sharded(tensor)]
    if not pieces:
        return found
    for at in pieces:
        tensor: Any = tensors[at][0]
        axis, flags = tensors[at][1], found[at]
        found[at] = flags.new_zeros(tensor.shape[axis])
        rows: Any = slice(None)
        if axis == 0:
            rows = local_piece(sharded_like(torch.arange(tensor.shape[0], device=flags.device), tensor))
        found[at][rows] = flags
    mesh = tensors[pieces[0]][0].device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    flat = torch.cat([found[at] for at in pieces]).to(torch.uint8)
    dist.all_reduce(flat, dist.ReduceOp.MAX, group=mesh.get_group(mesh.ndim - 1))
    for at, flags in zip(pieces, flat.split([len(found[at]) for at in pieces]), strict=True):
        found[at] = flags.bool()
    return found


def where_nonzero(tensor: Tensor, axis: int) -> Tensor:
    """Per index of one axis: is any entry different from zero?"""
    flags = tensor != 0
    return flags if tensor.dim() == 1 else flags.movedim(axis, 0).flatten(1).any(1)
