"""A network of residual blocks, their sums in every spelling, and a cut of each block output on its own."""

import random

import torch
from torch import Tensor, nn

import comparing
import demp
import killing
import nets


class Block(nn.Module):
    """A residual block whose sum is spelled in one of the usual ways."""

    def __init__(self, width: int, inner: int, spelling: str = "x + y") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act, self.spelling = nn.ReLU(), spelling

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        match self.spelling:
            case "x + y":
                return self.act(x + y)
            case "y + x":
                return self.act(y + x)
            case "y += x":
                y += x
                return self.act(y)
            case "x += y":
                x = x * 1  # the sum is written into the stream, which would have to change its width
                x += y
                return self.act(x)
            case "y.add_(x)":
                y.add_(x)
                return self.act(y)
            case "torch.add":
                return self.act(torch.add(y, x))
            case "alpha":
                return self.act(torch.add(y, x, alpha=2))
        raise AssertionError(self.spelling)


def network(blocks: int = 3, width: int = 8, spelling: str = "x + y") -> tuple[nn.Module, tuple[Tensor, ...]]:
    stem = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    body = [Block(width, 5, spelling) for _ in range(blocks)]
    model = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    return nets.settle(model), (torch.randn(2, 3, 6, 6, dtype=torch.float64),)


def cut_apart(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0, share: float = 0.5) -> demp.CutReport:
    """Kill and remove random neurons of every layer, each block output on its own."""
    graph = demp.trace(model, inputs)
    dead = killing.some_dead(graph, share, random.Random(seed))
    killing.kill(model, graph, dead)
    before = comparing.outputs(model, inputs)
    report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
    return report
