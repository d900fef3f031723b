"""A class that several layers carry is dead where it is dead in every one of them."""

import pytest
import torch
from torch import nn

import demp


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.act_a, self.act_b = nn.ReLU(), nn.ReLU()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        a, b = self.act_a(self.a(x)), self.act_b(self.b(x))
        return self.left(a) + self.right(b) + self.out(a + b)


@pytest.mark.parametrize("b", [[True, False, True, False], None])
def test_every_layer_that_is_read_has_to_agree(b):
    graph = demp.trace(Summed(), (torch.randn(2, 3),), joins=False)
    classes = graph.layer("act_a").classes
    assert torch.equal(classes, graph.layer("act_b").classes), "the sum couples the two"
    dead = {"act_a": torch.tensor([True, True, False, False])}
    if b is not None:
        dead["act_b"] = torch.tensor(b)
    wanted = [False] * 4 if b is None else [True, False, False, False]
    assert graph.agreed(dead)[classes].tolist() == wanted
