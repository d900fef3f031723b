"""The steps that benchmarks time: one of training, one of inference, and the optimizers of the paper."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
