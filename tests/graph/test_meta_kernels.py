"""The short ways on the meta device give what torch's own kernels give."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from demp.graph.meta_kernels import MetaKernels


def shown(tree: Any) -> list[tuple[Any, ...]]:
    leaves = [leaf for leaf in (tree if isinstance(tree, (tuple, list)) else [tree]) if leaf is not None]
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type, t.requires_grad) for t in leaves]


def normed(x: Tensor, training: bool) -> Any:
    scale, shift, mean, variance = (torch.ones(x.shape[1], device="meta", dtype=x.dtype) for _ in range(4))
    scale.requires_grad_()
    return torch.native_batch_norm(x, scale, shift, mean, variance, training, 0.1, 1e-5)


def ones(like: Tensor, *shape: int) -> Tensor:
    return torch.ones(shape, dtype=like.dtype, device="meta", requires_grad=like.requires_grad)


OPERATIONS = {
    "relu": lambda x: F.relu(x),
    "add": lambda x: x + x,
    "add another order": lambda x: x + x.contiguous(memory_format=torch.channels_last),
    "add broadcast": lambda x: x + x[:1],
    "add another type": lambda x: x + x.double(),
    "add a number": lambda x: x + 1,
    "mul": lambda x: x * x,
    "sub with a factor": lambda x: torch.sub(x, x, alpha=2),
    "not dense": lambda x: F.relu(x[:, :, ::2]),
    "expanded": lambda x: F.relu(x[:, :1].expand(-1, 3, -1, -1)),
    "linear": lambda x: F.linear(x, ones(x, 6, 5), ones(x, 6)),
    "linear of rows": lambda x: F.linear(x.flatten(1), ones(x, 6, 60), ones(x, 6)),
    "linear without a bias": lambda x: F.linear(x.flatten(1), ones(x, 6, 60)),
    "linear of nothing": lambda x: F.linear(x.flatten(1)[:0], ones(x, 6, 60), ones(x, 6)),
    "a sum of a matrix and a product": lambda x: torch.addmm(ones(x, 2, 6), x.flatten(1), ones(x, 60, 6), beta=2),
    "batch norm": lambda x: normed(x, False),
    "batch norm in training": lambda x: normed(x, True),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_results_are_those_of_torch(name, dtype, order):
    if ("norm" in name or "linear" in name) and dtype is torch.int64:
        return
    x = torch.empty(2, 3, 4, 5, dtype=dtype, device="meta").contiguous(memory_format=order)
    if dtype.is_floating_point:
        x.requires_grad_()
    expected = OPERATIONS[name](x)
    with MetaKernels():
        found = OPERATIONS[name](x)
    assert shown(found) == shown(expected)


def test_what_does_not_fit_is_torchs_error():
    rows, weight, bias = (torch.ones(shape, device="meta") for shape in ((2, 5), (6, 4), (6,)))
    with MetaKernels(), pytest.raises(RuntimeError):
        F.linear(rows, weight, bias)
