"""A mask that is the same for every head keeps none; one that tells heads apart keeps them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from exactly import reasons

HEADS, CHANNELS, LENGTH, WINDOWS = 4, 4, 6, 2
Mask = Callable[["Masked", Tensor], Tensor]


def causal(x: Tensor) -> Tensor:
    """Zeros and minus infinity, for positions alone."""
    length = x.shape[1]
    return torch.zeros(length, length, dtype=x.dtype).masked_fill(
        torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf")
    )


def expanded(x: Tensor, heads: int) -> Tensor:
    """The same for each head."""
    return causal(x).expand(len(x), heads, -1, -1)


def windows(s: "Masked", x: Tensor) -> Tensor:
    """As timm's Swin does: a mask for each window, which a reshape copies."""
    length, count = x.shape[1], len(s.regions)
    mask = s.regions.view(1, count, 1, length, length).expand(len(x) // count, -1, s.num_heads, -1, -1)
    return s.table + mask.reshape(-1, s.num_heads, length, length)


def zeros(s: "Masked", x: Tensor) -> Tensor:
    """As T5 does where no bias is learned."""
    return torch.zeros(1, s.num_heads, x.shape[1], x.shape[1], dtype=x.dtype)


ALIKE: dict[str, Mask] = {
    "expanded": lambda s, x: expanded(x, s.num_heads),
    "of booleans": lambda s, x: expanded(x, s.num_heads) == 0,
    "copied": lambda s, x: expanded(x, s.num_heads).clone(),
    "repeated": lambda s, x: causal(x)[None, None].repeat(1, s.num_heads, 1, 1),
    "turned": lambda s, x: expanded(x.mT.mT, s.num_heads).transpose(1, 2).contiguous().transpose(1, 2),
    "zeros and a mask": lambda s, x: zeros(s, x) + causal(x),
    "part of zeros": lambda s, x: zeros(s, x)[:, :, -x.shape[1] :, :] + causal(x),
    "a bias and a mask": lambda s, x: s.table + expanded(x, s.num_heads),
    "windows": windows,
}


def written(x: Tensor, heads: int) -> Tensor:
    mask = expanded(x, heads).clone()
    mask[:, 1] = 0.0
    return mask


def written_before_a_copy(x: Tensor, heads: int) -> Tensor:
    mask = torch.zeros(len(x), heads, *causal(x).shape, dtype=x.dtype)
    part = mask.view(len(x), heads, -1)
    part[:, 2].sub_(1.0)
    return (mask + causal(x)).clone()


def activated(x: Tensor, heads: int) -> Tensor:
    mask = (expanded(x, heads) == 0).to(x.dtype) - 0.5
    mask[:, 1].relu_()
    return mask


def into(x: Tensor, heads: int) -> Tensor:
    mask = expanded(x, heads).clone()
    torch.mul(mask, torch.arange(heads, dtype=x.dtype)[:, None, None] + 1, out=mask)
    return mask.nan_to_num(neginf=-1e9)


APART: dict[str, Mask] = {
    "written": lambda s, x: written(x, s.num_heads),
    "written before a copy": lambda s, x: written_before_a_copy(x, s.num_heads),
    "activated": lambda s, x: activated(x, s.num_heads),
    "into": lambda s, x: into(x, s.num_heads),
    "slopes": lambda s, x: expanded(x, s.num_heads) + torch.arange(s.num_heads)[:, None, None] * zeros(s, x),
    "drawn": lambda s, x: (
        torch.rand(s.num_heads, x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(0))
        .to(x.dtype)
        .add(expanded(x, s.num_heads))
    ),
}


class Masked(nn.Module):
    """Attention with a mask."""

    regions: Tensor

    def __init__(self, mask: Mask, *, fused: bool = True) -> None:
        super().__init__()
        self.mask, self.fused, self.num_heads = mask, fused, HEADS
        self.qkv, self.out = nn.Linear(8, 3 * HEADS * CHANNELS), nn.Linear(HEADS * CHANNELS, 8)
        self.table = nn.Parameter(torch.randn(HEADS, LENGTH, LENGTH))  # not read by all masks
        regions = torch.zeros(WINDOWS, LENGTH, LENGTH)
        regions[1, :, :2] = -100.0
        self.register_buffer("regions", regions)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, CHANNELS).permute(2, 0, 3, 1, 4)
        mask = self.mask(self, x) if given is None else given
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.mT * CHANNELS**-0.5
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """A layer of it, and what takes the stream away; ``tied``: two layers with one mask between them."""

    def __init__(self, mask: Mask, *, fused: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.attend, self.last, self.tied = Masked(mask, fused=fused), nn.Linear(8, 3), tied
        self.second = Masked(mask, fused=fused) if tied else None

    def forward(self, x: Tensor) -> Tensor:
        if self.second is None:
            return self.last(x + self.attend(x))
        mask = self.attend.mask(self.attend, x)
        x = x + self.attend(x, mask)
        return self.last(x + self.second(x, mask))


def examples(count: int = 2 * WINDOWS) -> Tensor:
    return torch.randn(count, LENGTH, 8, dtype=torch.float64)


def heads_of(graph: Any) -> list[Any]:
    return [layer for layer in graph.layers if layer.activation == "attention"]


def cut(model: Any, x: Tensor, chosen: list[int]) -> None:
    """Dead heads of every layer go; what comes out stays, for other numbers of windows as well."""
    graph = demp.trace(model, x)
    layers = heads_of(graph)
    assert layers and all(bool(layer.removable.all()) for layer in layers), reasons(graph)
    dead = {layer.name: chosen for layer in layers}
    killing.kill(model, graph, dead, low=0.0)
    dense = copy.deepcopy(model)
    assert demp.cut(model, dead, example_inputs=x, graph=graph).removed >= len(chosen)
    for count in (2 * WINDOWS, WINDOWS, 3 * WINDOWS):
        other = examples(count)
        for mode in (True, False):
            before = comparing.outputs(dense, (other,)) if not mode else [dense.train()(other).detach()]
            after = comparing.outputs(model, (other,)) if not mode else [model.train()(other).detach()]
            assert comparing.gap(before, after) < 1e-10


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ALIKE)
def test_heads_under_one_mask_go_twice(name: str, fused: bool):
    torch.manual_seed(0)
    model: Any = Net(ALIKE[name], fused=fused).double()
    cut(model, examples(), [0, 2])
    cut(model, examples(), [1])
    assert model.attend.qkv.weight.shape == (3 * CHANNELS, 8)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", APART)
def test_heads_that_a_mask_tells_apart_stay(name: str, fused: bool):
    torch.manual_seed(0)
    graph = demp.trace(Net(APART[name], fused=fused).double(), examples())
    assert graph.removable() == 0, name
    assert "made in the forward" in reasons(graph), reasons(graph)


@pytest.mark.parametrize("name", ["zeros and a mask", "copied"])
def test_layers_that_share_a_mask_lose_the_same_heads(name: str):
    torch.manual_seed(0)
    model = Net(ALIKE[name], tied=True).double()
    first, second = heads_of(demp.trace(model, examples()))
    assert first.classes.equal(second.classes)
    cut(model, examples(), [1, 3])
