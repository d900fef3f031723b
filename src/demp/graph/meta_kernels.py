"""Shapes of the most frequent operations on the meta device, where torch's own kernels are slow Python."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten
LIKE_FIRST = frozenset({aten.relu.default, aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor})
"""Operations whose result is like their first operand where the second is alike, repeated for it, or a number."""
EACH = frozenset({
    aten.gelu.default, aten.silu.default, aten.tanh.default, aten.sigmoid.default, aten.neg.default, aten.rsqrt.default,
    aten.mul.Scalar, aten.pow.Tensor_Scalar, aten.hardtanh.default, aten.leaky_relu.default, aten.clamp_min.default,
})  # fmt: skip
"""Operations on one tensor of floats, whose result is like it."""
IN_PLACE = frozenset({aten.sigmoid_.default, aten.tanh_.default})
"""Operations that write into one tensor of floats."""
PLAIN = (Tensor, torch.nn.Parameter)
"""Types of tensors without a dispatch of their own."""
WHOLE = frozenset({torch.float32, torch.float64})
"""Types in which a batch norm keeps its statistics in the type of what it normalises."""


class MetaKernels(TorchDispatchMode):
    """Inside, these operations make their empty results on meta at once; the results are those of torch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The short way where it is known, torch's own otherwise."""
        if func is aten.addmm.default and not kwargs and fits(*args):
            return torch.empty((args[1].shape[0], args[2].shape[1]), dtype=args[0].dtype, device="meta")
        if func in IN_PLACE and type(args[0]) in PLAIN and args[0].is_meta and args[0].is_floating_point():
            return args[0]
        if args and is_plain_meta(args[0]):
            if func in LIKE_FIRST and all(alike(args[0], other) for other in args[1:]):
                return like(args[0])
            if func in EACH and keeps_type(args, kwargs):
                return like(args[0])
            if args[0].is_contiguous() and in_order(func, args, kwargs):
                return REDUCED[func](*args) if func in REDUCED else like(args[0])
            if func is aten.native_batch_norm.default and args[0].dtype in WHOLE:
                return batch_norm(*args)
        return func(*args, **(kwargs or {}))


def batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean and inverse standard deviation, as the kernel returns them."""
    mean = torch.empty_strided(x.shape[1:2], (1,), dtype=x.dtype, device="meta")
    return like(x), mean, torch.empty_like(mean)


def layer_norm(x: Tensor, shape: Sequence[int], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean and inverse standard deviation, as the kernel returns them."""
    sizes = [*x.shape[: x.dim() - len(shape)], *[1] * len(shape)]
    mean = torch.empty(sizes, dtype=x.dtype, device="meta")
    return like(x), mean, torch.empty_like(mean)


def mean(x: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    """The mean over some axes."""
    over = {axis % x.dim() for axis in axes}
    sizes = [1 if axis in over else size for axis, size in enumerate(x.shape) if keepdim or axis not in over]
    return torch.empty(sizes, dtype=x.dtype, device="meta")


REDUCED = {aten.native_layer_norm.default: layer_norm, aten.mean.dim: mean}


def in_order(func: Any, args: Sequence[Any], kwargs: Any) -> bool:
    """Is it an operation that makes a contiguous result of a contiguous tensor, on axes that the tensor has?"""
    x = args[0]
    if func is aten.native_layer_norm.default:
        return x.dtype in WHOLE and len(args[1]) > 0 and tuple(x.shape[-len(args[1]) :]) == tuple(args[1])
    if func is aten.mean.dim:
        over = {axis % x.dim() for axis in args[1] or () if -x.dim() <= axis < x.dim()}
        return not kwargs and x.is_floating_point() and 0 < len(over) == len(args[1])
    if func in (aten.tril.default, aten.triu.default):
        return x.dim() > 1
    softmax = func in (aten._softmax.default, aten._safe_softmax.default)
    return softmax and keeps_type(args, kwargs) and True not in args[2:] and -x.dim() <= args[1] < x.dim()


def keeps_type(args: Sequence[Any], kwargs: Any) -> bool:
    """Is the result of the type of the first operand: a tensor of floats, beside it numbers and no other type?"""
    others = [*args[1:], *(kwargs or {}).values()]
    return args[0].is_floating_point() and not any(isinstance(other, (torch.dtype, complex)) for other in others)


def fits(bias: Any, rows: Any, weight: Any) -> bool:
    """Are these a vector and two matrices of one type that can be multiplied, as in a linear layer?"""
    if not all(type(t) in PLAIN and t.is_meta and t.dtype is bias.dtype for t in (bias, rows, weight)):
        return False
    return rows.shape[1] == weight.shape[0] and bias.shape == weight.shape[1:] and rows.numel() > 0 < bias.numel()


def like(x: Tensor) -> Tensor:
    """An empty tensor of the same shape and order in memory."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def is_plain_meta(tensor: Any) -> bool:
    """A tensor on meta without gaps in memory, of a type without a dispatch of its own."""
    if type(tensor) not in PLAIN or not tensor.is_meta or tensor.layout is not torch.strided:
        return False
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def alike(first: Tensor, other: Any) -> bool:
    """Is it a tensor of the same type, shape and order in memory, one that is repeated to that shape, or a number?"""
    if isinstance(other, (int, float)):
        return first.is_floating_point() and not isinstance(other, bool)
    if not is_plain_meta(other) or other.dtype != first.dtype:
        return False
    if other.dim() == 0 or other.shape == first.shape:
        return other.stride() == first.stride()
    if not (first.is_contiguous() and other.is_contiguous() and other.dim() <= first.dim()):
        return False
    return all(mine in (1, whole) for mine, whole in zip(other.shape, first.shape[-other.dim() :], strict=True))
