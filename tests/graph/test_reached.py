"""A forward that takes one of several ways: a cut on one of them leaves the others as earlier cuts made them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
import nets
from demp.graph.calls import model_calls

DEAD = [1, 2, 5]


class Halves(nn.Module):
    """Two layers that read a half each, by numbers written into the forward."""

    def __init__(self):
        super().__init__()
        self.make, self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.make(x)).split([4, 4], 1)
        return self.left(left) + self.right(right)


class Either(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = Halves(), Halves()

    def forward(self, x: Tensor, first: bool) -> Tensor:
        return self.one(x) if first else self.other(x)


@torch.no_grad()
def test_calls_of_a_part_that_the_second_cut_did_not_reach_stay_planned():
    model, x = nets.settle(Either()), torch.randn(3, 6, dtype=torch.float64)
    for part in (model.one, model.other):
        part.make.weight[DEAD], part.make.bias[DEAD] = 0.0, -1.0
    before = {first: model(x, first) for first in (True, False)}
    for first, name in ((True, "one"), (False, "other")):
        report = demp.cut(model, {f"{name}.relu": DEAD}, example_inputs=(x, first))
        assert report.removed == 3
    assert model_calls(model).keys() == {"one", "other"}
    for first, outputs in before.items():
        torch.testing.assert_close(model(x, first), outputs, rtol=0, atol=1e-12)
