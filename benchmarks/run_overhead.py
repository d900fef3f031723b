"""A whole run with DemP over the plain loop, where nothing is removed: steps, window, checks and the pruner's making.

    .venv/bin/python benchmarks/run_overhead.py

Every run is made twice in turns of one step; a pair is one such run. To reach: 1.10.
Without a budget the strength is too small to silence anybody; with one, the budget is the whole network.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import nn

import demp
from common import Ratio, arguments, parsed, show
from demp.train.models.names import build
from steps import whole_run

LIMIT = 1.10
ARMS: dict[str, dict[str, Any]] = {
    "window": {"peak_strength": 1e-9},
    "budget": {"budget": demp.Budget(flops=1.0)},
    "no-noise": {"peak_strength": 1e-9, "peak_noise_std": 0.0},
    "last-check": {"peak_strength": 1e-9, "live_mask": "last-check"},
    "short-window": {"peak_strength": 1e-9, "window_steps": 3},
    "short-window-no-noise": {"peak_strength": 1e-9, "window_steps": 3, "peak_noise_std": 0.0},
}
"""The window with one thing changed each says what its overhead is made of."""


@dataclass(frozen=True)
class Case:
    """A network, its batches and its optimizer."""

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def perceptron() -> nn.Module:
    """Two hidden layers with batch norm."""
    return nn.Sequential(
        *(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU()),
        *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()),
        nn.Linear(256, 10),
    )


def built(name: str, channels: int, size: int, width: float, **options: Any) -> Callable[[], nn.Module]:
    """A model of the trainer by its name."""
    return lambda: build(name, num_classes=10, in_channels=channels, image_size=size, width=width, **options)


CASES = (
    Case("MLP with batch norm, batch 64", perceptron, (64,), 64),
    Case("ResNet-18 with 8 channels, 32 pixels, batch 64", built("resnet18", 3, 32, 8 / 64), (3, 32, 32), 64),
    Case(
        "ViT of 4 blocks on 8 pixels, batch 64",
        built("vit_b_16", 1, 8, 0.125, patch=2, depth=4, activation="gelu"),
        (1, 8, 8),
        64,
    ),
)


def main() -> None:
    """Measure every case and arm."""
    parser = arguments(
        __doc__,
        arms={"nargs": "+", "choices": list(ARMS), "default": ["window", "budget"]},
        cases={"nargs": "+", "type": int, "choices": range(len(CASES)), "default": list(range(len(CASES)))},
        steps={"type": int, "default": 300, "help": "steps of a run"},
        pairs={"type": int, "default": 5},
    )
    chosen = parsed(parser)
    logging.getLogger("demp").setLevel(logging.ERROR)  # the advice that nothing was removed, which is the point
    results = [measure(CASES[at], arm, chosen.steps, chosen.pairs) for at in chosen.cases for arm in chosen.arms]
    show(results, chosen.json)


def measure(case: Case, arm: str, steps: int, pairs: int) -> Ratio:
    """Whole runs, plain and with the pruner."""
    overhead(case, arm, steps // 10)
    runs = [overhead(case, arm, steps) for _ in range(pairs)]
    plain, ours = (list(side) for side in zip(*runs, strict=True))
    return Ratio(f"{case.name}, {arm}, {steps} steps", plain, ours, limit=LIMIT)


def overhead(case: Case, arm: str, steps: int) -> tuple[float, float]:
    """Seconds of the plain run and of ours."""
    torch.manual_seed(0)
    x, y = torch.randn(case.batch, *case.shape), torch.randint(10, (case.batch,))
    plain, ours, pruner = whole_run(case.model(), repeat((x, y)), steps, **ARMS[arm])
    assert sum(report.removed for report in pruner.history) == 0, "neurons were removed: the runs are not alike"
    return plain, ours


if __name__ == "__main__":
    main()
