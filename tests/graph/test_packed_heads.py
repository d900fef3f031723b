"""Query, key and value in one layer: which axis of a view holds heads is seen from what is taken apart, not guessed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
import killing
from thinning import covering

Parts = Callable[[Tensor, int], tuple[Tensor, ...]]

LAYOUTS: dict[str, tuple[int, Parts]] = {
    "parts first, unbound": (0, lambda x, at: x.unbind(at)),
    "parts first, moved": (0, lambda x, at: tuple(x.movedim(at, 0))),
    "heads first, picked": (1, lambda x, at: tuple(x[..., i, :] for i in range(3))),
    "heads first, unbound": (1, lambda x, at: x.unbind(at)),
    "heads first, chunked": (1, lambda x, at: tuple(part.squeeze(at) for part in x.chunk(3, at))),
    "parts last, unbound": (2, lambda x, at: x.unbind(at)),
    "parts last, picked": (2, lambda x, at: tuple(x[..., i] for i in range(3))),
}
"""Where the parts lie among parts, heads and channels, and how they are taken apart."""


class Packed(nn.Module):
    """Attention in one of the layouts; ``written``: with the number of heads as a number in the code."""

    def __init__(self, layout: str, heads: int, channels: int, *, written: bool):
        super().__init__()
        self.place, self.parts = LAYOUTS[layout]
        self.written, self.num_heads, self.head_dim = heads if written else None, heads, channels
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 3 * heads * channels)
        self.out, self.last = nn.Linear(heads * channels, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        sizes = [self.written or self.num_heads, self.head_dim]
        sizes.insert(self.place, 3)
        packed = self.qkv(self.norm(x)).view(batch, length, *sizes)
        q, k, v = (part.transpose(1, 2) for part in self.parts(packed, 2 + self.place))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.last(x + self.out(y.transpose(1, 2).reshape(batch, length, -1)))


@pytest.mark.parametrize(
    ("layout", "heads", "channels", "written"), covering(LAYOUTS, (2, 3, 4), (3, 4), (True, False), together=2)
)
def test_heads_go_until_one_is_left(layout: str, heads: int, channels: int, written: bool):
    torch.manual_seed(0)
    model: Any = Packed(layout, heads, channels, written=written).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    longer = torch.randn(3, 9, 8, dtype=torch.float64)
    for left in range(heads, 1, -1):
        graph = demp.trace(model, x)
        layer = graph.layer("attention")
        assert (layer.width, int(layer.removable.sum())) == (left, left), graph.refused
        dead = {"attention": [left // 2]}
        killing.kill(model, graph, dead)
        dense = copy.deepcopy(model)
        assert demp.cut(model, dead, example_inputs=x, graph=graph).removed == 1
        assert model.qkv.weight.shape == (3 * (left - 1) * channels, 8)
        for mode in (True, False):
            gap = (model.train(mode)(longer) - dense.train(mode)(longer)).detach().abs().max()
            assert float(gap) < 1e-10
