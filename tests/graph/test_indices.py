"""Indexed tensors against the data: where do the neurons lie, and is the network the same without the dead ones?"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets

WIDTH = 8
MASK = torch.tensor([[True, False, True], [False, True, True], [True, True, False], [False, False, True]])


def at(*indices):
    return torch.tensor(indices)


PATTERNS = {
    # of a tensor of 4 x 3 x WIDTH x 5
    "rows": lambda h: h[at(0, 2)],
    "rows twice": lambda h: h[:, at(0, 1, 1, 2).view(2, 2)],
    "two neighbours": lambda h: h[at(0, 1, 3), at(1, 2, 0)],
    "two apart": lambda h: h[at(0, 1), :, :, at(1, 2)],
    "two apart behind": lambda h: h[:, at(0, 1), :, at(1, 2)],
    "broadcast indices": lambda h: h[at(0, 1)[:, None], at(1, 2, 0)],
    "mask over two axes": lambda h: h[MASK],
    "mask over one": lambda h: h[:, MASK[0]],
    "mask and index": lambda h: h[MASK[:, 0], at(1, 2)],
    "last axis": lambda h: h[..., at(0, 0, 3)],
    "index_select": lambda h: h.index_select(1, at(2, 0, 2)),
    "index_add": lambda h: h.index_add(1, at(2, 0, 1), h),
    "index_copy": lambda h: h.index_copy(3, at(4, 1), h[..., :2]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_exact(pattern):
    def forward(s, x):
        h = F.relu(s.fc(x)).movedim(3, 2)
        picked = PATTERNS[pattern](h)
        return s.head(F.gelu(picked.movedim(picked.shape.index(h.shape[2]), -1)))

    model = nets.settle(nets.Forward(forward, fc=nn.Linear(6, WIDTH), head=nn.Linear(WIDTH, 2)))
    inputs = (torch.randn(4, 3, 5, 6).double(),)
    graph = demp.trace(model, inputs)
    assert all(layer.width == WIDTH and bool(layer.removable.all()) for layer in graph.layers)
    dead = killing.killed(model, graph, 0.4)
    before = comparing.outputs(model, inputs)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).happened
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
