"""Transformers on feature maps (Segformer, PVTv2): linear layers read what a depthwise convolution made."""

import random

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import killing
import nets


class MixFfn(nn.Module):
    """Attention with a reduced sequence, and a feed-forward net with a depthwise convolution between its layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.reduce = nn.Conv2d(width, width, 2, stride=2)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.deep = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        short = self.reduce(self.norm1(tokens).transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2)
        k, v = self.value(short).chunk(2, -1)
        tokens = tokens + nn.functional.scaled_dot_product_attention(self.query(self.norm1(tokens)), k, v)
        y = self.fc1(self.norm2(tokens))
        y = self.deep(y.transpose(1, 2).view(b, -1, h, w)).flatten(2).transpose(1, 2)
        return (tokens + self.fc2(torch.relu(y))).transpose(1, 2).reshape(b, c, h, w)


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("traced", LAYOUTS)
@pytest.mark.parametrize("judged", LAYOUTS)
def test_every_layout_finds_the_same_dead_and_the_cut_is_exact(traced, judged):
    model = nets.settle(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), MixFfn(6, 10), MixFfn(6, 8), nn.Conv2d(6, 2, 1)))
    model, x = model.to(memory_format=traced), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = demp.trace(model, (x.contiguous(memory_format=traced),))
    assert graph.removable() == 18
    dead = killing.some_dead(graph, 0.4, random.Random(2))
    killing.kill(model, graph, dead)
    inputs = (x.contiguous(memory_format=judged),)
    found = {
        name: (~alive).nonzero().flatten().tolist() for name, alive in demp.alive(model, [inputs], graph=graph).items()
    }
    assert all(set(indices) <= set(found[name]) for name, indices in dead.items())
    before = comparing.outputs(model, inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(x.contiguous(memory_format=traced),), total_steps=1, batches=[inputs]
    )
    model(*inputs).sum().backward()
    optimizer.step()
    assert pruner.finish().removed == sum(map(len, found.values())) > 4
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
