"""A network that is cut and saved, and files that are altered behind its back."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import demp
import nets

X = (torch.randn(6, 3, 6, 6),)


class Net(nn.Module):
    """Depthwise convolution, norm, flatten, tied table, a buffer that no state dict holds."""

    def __init__(self, widths: tuple[int, int] = (6, 5), slope: float = 0.1) -> None:
        super().__init__()
        one, two = widths
        self.conv, self.norm = nn.Conv2d(3, one, 3, bias=False), nn.BatchNorm2d(one)
        self.deep, self.fc = nn.Conv2d(one, one, 3, groups=one), nn.Linear(4 * one, two)
        self.head, self.tied = nn.Linear(two, 3), nn.Linear(two, 3)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.linspace(1, 2, one).view(1, one, 1, 1), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x))) * self.scale
        x = F.leaky_relu(self.fc(F.relu(self.deep(x)).flatten(1)) - 0.7, self.slope)
        return self.head(x) + self.tied(x * x)


DEAD = {"relu": [1, 4], "relu#2": [1, 4], "leaky_relu": [0]}


def cut_net() -> Net:
    torch.manual_seed(1)
    model = nets.settle(Net()).float()
    demp.cut(model, DEAD, example_inputs=X, exact=False)
    return model


def altered(path: Path, **changes) -> None:
    """Rewrite architecture.json, its own hash included."""
    from demp.artifact import content_hash

    file = path / "architecture.json"
    architecture = {**json.loads(file.read_text()), **changes}
    architecture["sha256"] = content_hash(architecture)
    file.write_text(json.dumps(architecture))
