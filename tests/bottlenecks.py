"""A network with bottlenecks: channels that other weights read before any activation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Inverted(nn.Module):
    """A block of MobileNetV2: wide, depthwise, narrow without an activation, and a sum where the shapes allow it."""

    def __init__(self, width: int, out: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()
        )
        self.project, self.norm, self.adds = nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out), width == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.project(self.deep(self.expand(x))))
        return x + y if self.adds else y


class Mobile(nn.Module):
    """A stem, four blocks of which two add, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.blocks = nn.Sequential(
            Inverted(12, 8, 16), Inverted(8, 16, 32), Inverted(16, 16, 48), Inverted(16, 16, 48)
        )
        self.last = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def images(seed: int = 0, count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(make: Callable[[], nn.Module]) -> Any:
    """In double precision, with norms that a cut of the wrong slices would show."""
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (module.weight, module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, 0.5, 0.5)
    return model
