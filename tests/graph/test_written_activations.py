"""GELUs that are written out: a number added to zero comes to nothing in the product with what is zero."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import demp
import killing
from demp.graph.parts import STREAM

ROOT = math.sqrt(2)
ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "x / 2 first": lambda x: x * 0.5 * (1 + torch.erf(x / ROOT)),
    "x last": lambda x: 0.5 * (1 + torch.erf(x / ROOT)) * x,
    "divided": lambda x: x * ((1.0 + torch.erf(x / ROOT)) / 2),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "no product": lambda x: 1 + torch.erf(x),
    "a sum": lambda x: x + (1 + torch.erf(x)),
    "a sum over channels": lambda x: x * (1 + torch.erf(x)).sum(-1, keepdim=True),
}


class Tied(nn.Module):
    """Embedding and scores share a weight, so that what stands before the last norm is of the stream, too."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Embedding(17, 12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.up, self.down, self.last = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 12)
        self.head, self.activation = nn.Linear(12, 17), activation
        self.head.weight = self.embed.weight

    def forward(self, words):
        x = self.embed(words)
        x = x + self.down(torch.relu(self.up(self.norm1(x))))
        return self.head(self.norm2(self.activation(self.last(x))))


@pytest.mark.parametrize("name", [*ZERO, *OTHER])
def test_the_embedding_width_goes_where_zero_stays_zero(name: str):
    torch.manual_seed(0)
    model = Tied((ZERO | OTHER)[name]).double().eval()
    words = torch.randint(0, 17, (3, 6))
    graph = demp.trace(model, (words,), streams=True)
    (stream,) = (layer for layer in graph.layers if layer.activation == STREAM)
    assert int(stream.removable.sum()) == (12 if name in ZERO else 0)
    if name in OTHER:
        assert "add makes other numbers of zeros" in graph.refused[0].reason
        return
    dead = {layer.name: [1, 4] for layer in graph.layers}
    killing.kill(model, graph, dead)
    more = torch.randint(0, 17, (4, 9))
    before = model(more).detach()
    assert demp.cut(model, dead, example_inputs=(words,), graph=graph).removed == 6
    torch.testing.assert_close(model(more), before, rtol=0, atol=1e-12)
