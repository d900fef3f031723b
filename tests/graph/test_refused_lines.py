"""A width that is written into the forward is refused with the line that fails when it changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp

WIDTH, HEADS = 8, 4


def line_with(mark: str) -> str:
    """The line of this file with a comment."""
    lines = Path(__file__).read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# here: {mark}")]
    return f"({Path(__file__).name}, line {at})"


def repeated(s: Any, h: Tensor) -> Tensor:
    q, k, v = (each(h).unflatten(-1, (-1, 2)).transpose(1, 2) for each in (s.q, s.key, s.value))
    k, v = (t.repeat(1, 4, 1, 1) for t in (k, v))
    y = F.scaled_dot_product_attention(q, k, v)  # here: repeated
    return s.out(y.transpose(1, 2).flatten(2))


def scaled(s: Any, h: Tensor) -> Tensor:
    h = F.relu(s.q(h))
    h = h * h.shape[-1] ** -0.5  # here: scaled
    return s.out(h)


def sized(s: Any, h: Tensor) -> Tensor:
    h = F.relu(s.q(h))
    return s.out(h.view(size=(*h.shape[:-1], 8)))  # here: sized


def helper(h: Tensor) -> Tensor:
    return h.view(size=(*h.shape[:-1], 8))  # here: helped


def helped(s: Any, h: Tensor) -> Tensor:
    return s.out(helper(F.relu(s.q(h))))


def in_training(s: Any, h: Tensor) -> Tensor:
    h = F.relu(s.q(h))
    if s.training:
        h = h.view(size=(*h.shape[:-1], 8))  # here: in_training
    return s.out(h)


class Layer(nn.Module):
    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.code = code
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if code is repeated:
            self.key, self.value = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


@pytest.mark.parametrize("blocks", [1, 6])
@pytest.mark.parametrize("code", [repeated, scaled, sized, helped, in_training])
def test_the_line_that_fails_is_named(code: Callable[[Any, Tensor], Tensor], blocks: int):
    model = nn.Sequential(*(Layer(code) for _ in range(blocks)))
    graph = demp.trace(model, torch.randn(2, 5, WIDTH))
    mark = code.__name__
    where = f"{helper.__qualname__ if code is helped else mark} {line_with(mark)}"
    refused = [one for one in graph.refused if one.name in graph.refused_layers() and one.neurons > 1]
    assert graph.removable() == 0 and len(refused) == blocks, graph.refused
    for one in refused:
        assert one.reason.endswith(f"; with fewer it fails in {where}"), one.reason


def test_what_runs_has_no_line():
    graph = demp.trace(nn.Sequential(Layer(lambda s, h: s.out(F.relu(s.q(h))))), torch.randn(2, 5, WIDTH))
    assert graph.removable() == WIDTH and "fails in" not in str(graph.refused)
