"""The short ways on the meta device give what torch's own kernels give."""

import random
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
    "add a vector": lambda x: x + ones(x, 5),
    "add a longer vector": lambda x: x[:1, :1, :1, :1] + ones(x, 5),
    "vector and map": lambda x: ones(x, 5) * x,
    "mul a map": lambda x: x * ones(x, 4, 5),
    "mul a column": lambda x: x * ones(x, 4, 1),
    "mul one number in a tensor": lambda x: x * ones(x),
    "mul a vector of another type": lambda x: x * ones(x, 5).double(),
    "mul a number": lambda x: x * 0.5,
    "mul a whole number": lambda x: x * 2,
    "mul a complex number": lambda x: x * 1j,
    "scalar": lambda x: torch.ops.aten.mul.Scalar(x, 0.5),
    "complex scalar": lambda x: torch.ops.aten.mul.Scalar(x, 1j),
    "truth": lambda x: x * True,
    "sub a number with a factor": lambda x: torch.sub(x, 0.5, alpha=2),
    "square": lambda x: x.pow(2),
    "root": lambda x: x.pow(0.5),
    "gelu": lambda x: F.gelu(x),
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: F.silu(x),
    "tanh": lambda x: torch.tanh(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "sigmoid in place": lambda x: (x + 1).sigmoid_(),
    "tanh in place, of a part": lambda x: (x + 1)[:, :, ::2].tanh_(),
    "up to six": lambda x: F.relu6(x),
    "a slope": lambda x: F.leaky_relu(x, 0.1),
    "from one on": lambda x: x.clamp_min(1),
    "mean of a map": lambda x: x.mean((2, 3)),
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "mean of all axes": lambda x: x.mean((0, -1, 2, 1)),
    "mean of another type": lambda x: x.mean((2, -1), dtype=torch.float64),
    "mean of no axes": lambda x: torch.ops.aten.mean.dim(x, []),
    "upper triangle": lambda x: torch.triu(x, 1),
    "negative": lambda x: -x,
    "inverse root": lambda x: torch.rsqrt(x),
    "tanh of a part": lambda x: torch.tanh(x[:, :, ::2]),
    "softmax": lambda x: F.softmax(x, -1),
    "softmax of another type": lambda x: F.softmax(x, -1, dtype=torch.float64),
    "softmax over channels": lambda x: F.softmax(x, 1),
    "lower triangle": lambda x: torch.tril(x),
    "softmax from half": lambda x: torch.ops.aten._softmax(x.half(), -1, True),
    "softmax of nothing": lambda x: torch.ops.aten._safe_softmax(x, -1),
    "layer norm": lambda x: torch.native_layer_norm(x, (5,), ones(x, 5), ones(x, 5), 1e-5),
    "layer norm of maps": lambda x: torch.native_layer_norm(x, (4, 5), None, None, 1e-5),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "batch norm": lambda x: normed(x, False),
    "batch norm in training": lambda x: normed(x, True),
}


FLOATS = (
    "norm",
    "linear",
    "gelu",
    "silu",
    "softmax",
    "attention",
    "part",
    "nothing",
    "in place",
    "six",
    "slope",
    "mean",
)
"""What torch does not do with whole numbers."""


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_results_are_those_of_torch(name, dtype, order):
    if any(word in name for word in FLOATS) and dtype is torch.int64:
        return
    x = torch.empty(2, 3, 4, 5, dtype=dtype, device="meta").contiguous(memory_format=order)
    if dtype.is_floating_point:
        x.requires_grad_()
    expected = OPERATIONS[name](x)
    with MetaKernels():
        found = OPERATIONS[name](x)
    assert shown(found) == shown(expected)


@pytest.mark.parametrize("seed", range(200))
def test_sums_of_any_shapes_are_those_of_torch(seed):
    draw = random.Random(seed)
    shape = [draw.choice((1, 2, 3)) for _ in range(draw.randrange(5))]
    other = [size if draw.random() < 0.6 else 1 for size in shape[draw.randrange(len(shape) + 1) :]]
    one, two = (torch.empty(sizes, device="meta") for sizes in draw.sample((shape, other), 2))
    if one.dim() == 4 and draw.random() < 0.3:
        one = one.contiguous(memory_format=torch.channels_last)
    if two.dim() > 1 and draw.random() < 0.3:
        two = two.transpose(0, 1).contiguous().transpose(0, 1)
    expected = one + two
    with MetaKernels():
        assert shown(one + two) == shown(expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.native_layer_norm(x, (4,), None, None, 1e-5),
        lambda x: torch.tril(x[0, 0, 0]),
        lambda x: x.mean((1, 4)),
        lambda x: x.mean((1, -3)),
    ],
)
def test_axes_that_are_not_there_are_torchs_error(call):
    x = torch.empty(2, 3, 4, 5, device="meta")
    with MetaKernels(), pytest.raises((RuntimeError, IndexError)):
        call(x)


def test_what_does_not_fit_is_torchs_error():
    rows, weight, bias = (torch.ones(shape, device="meta") for shape in ((2, 5), (6, 4), (6,)))
    with MetaKernels(), pytest.raises(RuntimeError):
        F.linear(rows, weight, bias)
