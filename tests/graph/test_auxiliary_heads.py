"""Heads that run in training alone, where the output has another structure: what they read and make stays."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import exactly
import killing
import nets
from demp.graph.unoffered import AUXILIARY, TRAINING_ALONE
from shim import install_torchvision_shim

install_torchvision_shim()


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


class Auxiliary(nn.Module):
    """Two blocks, a head, and one more head behind the first block in training."""

    def __init__(self, auxiliary: bool = True) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(10, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head, self.auxiliary = nn.Linear(6, 4), auxiliary
        if auxiliary:
            self.aux = nn.Sequential(nn.Conv2d(10, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))

    def forward(self, x: Tensor) -> Tensor | Outputs:
        x = self.second(self.first(x))
        aux = self.aux(x) if self.auxiliary and self.training else None
        x = self.head(self.third(x).mean((2, 3)))
        return x if aux is None else Outputs(x, aux)


def test_what_an_auxiliary_head_reads_and_makes_stays_with_the_reason():
    model, inputs = nets.settle(Auxiliary()), (torch.randn(4, 3, 6, 6).double(),)
    graph = demp.trace(model, inputs)
    assert exactly.offered(graph) == {"first.2": 8, "third.2": 6}
    assert {refusal.name: (refusal.reason, refusal.neurons) for refusal in graph.refused} == {
        "second.2": (AUXILIARY, 10), "aux.0": (TRAINING_ALONE, 5),
    }  # fmt: skip
    assert all(exactly.cut_twice(model, inputs))  # both heads, in both modes
    assert isinstance(model.train()(*inputs), Outputs)


def test_without_the_head_they_may_go_as_the_reason_says():
    model, inputs = nets.settle(Auxiliary(auxiliary=False)), (torch.randn(4, 3, 6, 6).double(),)
    graph = demp.trace(model, inputs)
    assert exactly.offered(graph) == {"first.2": 8, "second.2": 10, "third.2": 6} and not graph.refused


@pytest.mark.parametrize(
    ("name", "size"), [("googlenet", 64), pytest.param("inception_v3", 299, marks=pytest.mark.slow)]
)
def test_networks_of_torchvision_are_right_with_their_heads(name, size):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, init_weights=False, aux_logits=True, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it draws depends on the width
    model, inputs = model.double().eval(), (torch.randn(4, 3, size, size).double(),)
    graph = demp.trace(model, inputs)
    assert {refusal.reason for refusal in graph.refused} == {AUXILIARY, TRAINING_ALONE}
    dead = killing.killed(model, graph, 0.3, low=0.0)
    before, in_training = comparing.outputs(model, inputs), exactly.trained(model, inputs)
    assert len(in_training) > 1
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed > 1000
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
    assert comparing.gap(in_training, exactly.trained(model, inputs)) < 1e-10
