"""Activation sites: which nonlinearity they apply, and how many neurons they carry."""

from collections.abc import Callable
from functools import partial
from typing import get_args

from torch import nn

from demp.files.checks import check, check_choice
from demp.train.choices import Activation

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, negative_slope=0.05),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
"""The paper's nonlinearities; its LeakyReLU has slope 0.05, its Swish is ``silu``."""


def activation_site(name: Activation) -> nn.Module:
    """A new module for one activation site.

    Every site gets its own module, so that its module path names the layer. None works in place:
    methods of second order differentiate twice.

    Raises:
        UsageError: there is no such activation.
    """
    check_choice("activation", name, get_args(Activation))
    return ACTIVATIONS[name]()


def scaled(neurons: int, width: float) -> int:
    """The standard number of ``neurons`` times the ``width`` factor, rounded, at least one.

    Raises:
        UsageError: the factor is not above 0.
    """
    check(width > 0, "width", width, "give a positive factor, 1.0 is the standard network")
    return max(1, round(neurons * width))
