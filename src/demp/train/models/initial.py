"""How the weights of a network are drawn: convolutional ones as torchvision draws them, or as the paper's authors did.

Before a norm the size of a weight does not change the output, but it decides what a step and a noise of a given size
do to it. The stored versions of the authors' networks differ: ResNets with either of theirs, VGG-16 with Haiku's.
"""

import math
from typing import TypeVar, get_args

from torch import Tensor, nn

from demp.files.checks import check_choice
from demp.pruner.initialization import reset_children
from demp.train.choices import Initial

Model = TypeVar("Model", bound=nn.Module)

FAN_OUT, FAN_IN, HAIKU = get_args(Initial)
"""``fan-out``: the model's own, Kaiming's normal of variance 2 / fan-out in convolutions, as torchvision. ``fan-in``:
Kaiming's of variance 2 / fan-in, cut off at two deviations, in convolutions, and ``haiku`` in linear layers. ``haiku``:
that library's default, a normal of deviation 1 / sqrt(fan-in) cut off at two. The last two have no bias at first."""
CUT = 0.87962566103423978
"""Deviation of a standard normal that is cut off at -2 and 2."""


class Initialized(nn.Module):
    """A network with weights of its own choice, at construction and whenever they are drawn anew."""

    def initialize(self) -> None:
        """Draw the weights, over those that the layers have drawn for themselves; by default these stay."""

    def reset_parameters(self) -> None:
        """All weights as at construction, at the widths of now."""
        reset_children(self)
        self.initialize()


def drawn(model: Model, initial: Initial) -> Model:
    """The model with the weights of its convolutions and linear layers drawn anew, unless ``initial`` is its own.

    Raises:
        UsageError: there is no such way.
    """
    check_choice("initial", initial, get_args(Initial))
    if initial == FAN_OUT:
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            wide = initial == FAN_IN and isinstance(module, nn.Conv2d)
            cut_off(module.weight, math.sqrt(2) / CUT if wide else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def cut_off(weight: Tensor, scale: float) -> None:
    """Normal of deviation scale / sqrt(fan-in), cut off at two of them."""
    std = scale / math.sqrt(weight[0].numel())
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
