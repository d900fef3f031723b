"""A forward that computes with a width is another one at each width: its neurons stay, and the reason is said."""

import random
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


class Scaled(nn.Module):
    """Its forward does something with ``number(hidden)``."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.head, self.use, self.width = nn.Linear(4, 8), nn.Linear(8, 3), use, 8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self, F.relu(self.fc(x))))


WIDTHS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a power": lambda model, h: h * h.shape[-1] ** -0.5,
    "a quotient": lambda model, h: h / h.size(1),
    "a sum": lambda model, h: h + h.size(1) * h,
    "a mean by hand": lambda model, h: h * (h.pow(2).sum(-1, keepdim=True) / h.shape[-1]),
    "an exponent": lambda model, h: h ** (h.shape[1] / 8),
    "in training": lambda model, h: h / h.shape[1] if model.training else h,
    "of the weight": lambda model, h: h / model.fc.weight.shape[0],
}
CONSTANTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a constant": lambda model, h: h * 8**-0.5,
    "an attribute": lambda model, h: h / model.width,
    "of the batch": lambda model, h: h / h.shape[0],
    "a mean": lambda model, h: h * h.mean(-1, keepdim=True),
    "chance in training": lambda model, h: h * random.random() if model.training else h,
}


@pytest.mark.parametrize("kind", WIDTHS)
def test_a_number_that_follows_the_width_keeps_the_neurons(kind: str):
    graph = demp.trace(Scaled(WIDTHS[kind]), (torch.randn(5, 4),))
    assert graph.removable() == 0 and " a number)" in reasons(graph), reasons(graph)


@pytest.mark.parametrize("kind", CONSTANTS)
def test_other_numbers_do_not(kind: str):
    torch.manual_seed(0)
    model, x = Scaled(CONSTANTS[kind]).double(), (torch.randn(5, 4).double(),)
    graph = demp.trace(model, x)
    assert graph.removable() == 8
    killing.kill(model, graph, {"relu": [1, 5]})
    before = comparing.outputs(model, x)
    assert demp.cut(model, {"relu": [1, 5]}, example_inputs=x, graph=graph).removed == 2
    assert comparing.gap(before, comparing.outputs(model, x)) < 1e-10


class Averaging(nn.Module):
    """Counts its calls in a buffer, and computes with the number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(F.relu(self.fc(x)) / int(self.calls))


def test_numbers_that_change_by_themselves_say_nothing():
    assert demp.trace(Averaging(), (torch.randn(5, 4),)).removable() == 8
    norm = nn.BatchNorm2d(8, momentum=None)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    assert demp.trace(model, (torch.randn(2, 3, 8, 8),)).removable() == 8
