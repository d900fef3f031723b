"""Attention of one query, a class token: the axis of length one is no part of its heads."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
import killing


class ClassAttention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.heads, self.fused = 4, fused

    def forward(self, x):
        batch, length, width = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(batch, 1, self.heads, width // self.heads).permute(0, 2, 1, 3)
        k, v = (fc(x).reshape(batch, length, self.heads, width // self.heads) for fc in (self.k, self.v))
        k, v = k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else ((q * 0.5) @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, 1, width))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_heads_are_offered_again_after_a_cut(batch: int, fused: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), ClassAttention(fused)).double().eval()
    x = torch.randn(batch, 5, 16).double()
    for left in (4, 3, 2):
        graph = demp.trace(model, (x,))
        name = "1.attention"
        assert int((graph.layer(name).removable & ~graph.dense.removed[graph.layer(name).classes]).sum()) == left
        killing.kill(model, graph, {name: [0]})
        dense = copy.deepcopy(model)
        assert demp.cut(model, {name: [0]}, example_inputs=(x,), graph=graph).removed == 1
        other = torch.randn(4, 7, 16).double()
        torch.testing.assert_close(model(other), dense(other), rtol=0, atol=1e-12)
