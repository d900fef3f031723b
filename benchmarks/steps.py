"""The steps that benchmarks time: one of training, one of inference, whole runs, and the optimizers of the paper."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from common import seconds

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(params, lr=1e-4),
    "sgdm": lambda params: torch.optim.SGD(params, lr=1e-4, momentum=0.9),
}
"""With rates so small that a network stays as it was made."""


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One training step."""
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def infer_step(model: nn.Module, x: Tensor) -> None:
    """One forward without gradients, in the mode that the model is in."""
    with torch.inference_mode():
        model(x)


def whole_run(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], steps: int, **options: Any
) -> tuple[float, float, demp.Pruner]:
    """A plain run and one with DemP of the same network, in turns of one step; the pruner's making and end are ours.

    Returns seconds of the plain run, of ours, and the finished pruner. ``options`` are those of ``demp.DemP``.
    """
    networks = (model, copy.deepcopy(model))
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-3) for one in networks]
    spent, made = [0.0, 0.0], []

    def attach(examples: Tensor) -> None:
        made.append(demp.DemP(networks[1], optimizers[1], example_inputs=(examples,), total_steps=steps, **options))

    for step, (x, y) in enumerate(islice(batches, steps)):
        if step == 0:
            spent[1] += seconds(partial(attach, x[:2]))
        for which in (0, 1) if step % 2 == 0 else (1, 0):
            spent[which] += seconds(partial(train_step, networks[which], optimizers[which], x, y))
    spent[1] += seconds(made[0].finish)
    return spent[0], spent[1], made[0]
