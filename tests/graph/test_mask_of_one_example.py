"""A mask made for all heads from one example: an axis of length 1 may be the batch, and may land among the heads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from exactly import reasons

HEADS, CHANNELS = 4, 4

FOLDED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeated": lambda pad, heads: pad.repeat(heads, 1, 1),
}
"""From (batch, 1, length) to (heads * batch, 1, length), which scores of (batch * heads) meet."""
MIXED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeated, then viewed": lambda pad, heads: pad.repeat(heads, 1, 1).view(len(pad), heads, 1, -1),
    "repeated over positions": lambda pad, heads: pad.repeat(heads, pad.shape[2], 1).view(
        len(pad), heads, pad.shape[2], -1
    ),
    "expanded": lambda pad, heads: (
        pad[None].expand(heads, -1, pad.shape[2], -1).reshape(len(pad), heads, pad.shape[2], -1)
    ),
    "expanded and copied": lambda pad, heads: (
        pad[None].expand(heads, -1, pad.shape[2], -1).contiguous().view(len(pad), heads, pad.shape[2], -1)
    ),
    "a one in front": lambda pad, heads: pad[:, None].expand(-1, heads, -1, -1).reshape(1, -1, 1, pad.shape[2]),
}
"""To (batch, heads, 1 or length, length), in an order in which examples and heads are mixed."""
APART: dict[str, Callable[[Tensor, int], Tensor]] = {
    "expanded": lambda pad, heads: pad[:, None].expand(-1, heads, -1, -1),
    "expanded and copied": lambda pad, heads: pad[:, None].expand(-1, heads, -1, -1).contiguous(),
    "repeated": lambda pad, heads: pad[:, None].repeat(1, heads, 1, 1),
    "broadcast": lambda pad, heads: pad[:, None],
}
"""The same for each head of an example."""


class Net(nn.Module):
    """Attention with a mask that is computed from the input, (batch, 1, length)."""

    def __init__(self, mask: Callable[[Tensor, int], Tensor], *, folded: bool) -> None:
        super().__init__()
        self.num_heads, self.mask, self.folded = HEADS, mask, folded
        self.q, self.k, self.v = (nn.Linear(8, HEADS * CHANNELS) for _ in range(3))
        self.pad, self.out, self.last = nn.Linear(8, 1), nn.Linear(HEADS * CHANNELS, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        shape = count, length, self.num_heads, CHANNELS
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = self.mask(self.pad(x).mT, self.num_heads)
        if self.folded:
            q, k, v = (t.reshape(count * self.num_heads, length, CHANNELS) for t in (q, k, v))
            seen = ((q @ k.mT) + mask).softmax(-1) @ v
            seen = seen.view(count, self.num_heads, length, CHANNELS)
        else:
            seen = F.scaled_dot_product_attention(q, k, v, mask)
        return self.last(x + self.out(seen.transpose(1, 2).flatten(2)))


def model_of(mask: Callable[[Tensor, int], Tensor], *, folded: bool) -> Net:
    torch.manual_seed(0)
    return Net(mask, folded=folded).double()


@pytest.mark.parametrize(
    ("mask", "folded"),
    [*((mask, False) for mask in MIXED.values()), *((mask, True) for mask in FOLDED.values())],
    ids=[*MIXED, *(f"folded, {name}" for name in FOLDED)],
)
def test_heads_stay_where_examples_may_be_mixed_with_them(mask: Callable[[Tensor, int], Tensor], folded: bool):
    graph = demp.trace(model_of(mask, folded=folded), torch.randn(1, 6, 8, dtype=torch.float64))
    assert graph.removable() == 0 and "made in the forward" in reasons(graph), reasons(graph)


@pytest.mark.parametrize("examples", [1, 2])
@pytest.mark.parametrize("name", APART)
def test_heads_go_where_each_example_has_one_mask(name: str, examples: int):
    model, x = model_of(APART[name], folded=False), torch.randn(5, 6, 8, dtype=torch.float64)
    graph = demp.trace(model, x[:examples])
    dead = {layer.name: [0, 2] for layer in graph.layers if layer.activation == "attention"}
    killing.kill(model, graph, dead, low=0.0)
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, dead, example_inputs=x[:examples], graph=graph).removed == 2
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
