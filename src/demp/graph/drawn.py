"""Tensors that a forward makes of nothing: noise, and one value everywhere."""

from collections.abc import Iterable, MutableMapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from demp.graph.elements import Labels
from demp.graph.operations import Call

DRAWS = frozenset({
    "rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "bernoulli_", "uniform_", "normal_",
    "exponential_", "geometric_", "log_normal_", "cauchy_", "random_",
})  # fmt: skip
"""Operations whose result is drawn at random, whatever was there before."""


FILLS = frozenset({"zeros", "ones", "full", "new_zeros", "new_ones", "new_full"})
"""Operations that make a tensor of one value: it binds no neuron, whatever the width."""


def is_noise(call: Call, operands: list[Labels]) -> bool:
    """Is what comes out drawn at random, or made of nothing but such tensors?

    Noise of dropout and its like is drawn anew, in whatever width its tensor has: it binds no neuron.
    """
    return call.name in DRAWS or (bool(operands) and all(labels.noise for labels in operands))


NO_NEURONS = "a tensor that has no neurons on this axis, made in the forward or mixed before"


def binds(labels: Labels, tensor: Tensor, dim: int) -> bool:
    """Do values along an axis without neurons differ? Not those of noise, or of one value there or everywhere."""
    return not labels.noise and not labels.uniform and dim not in labels.alike


def forget_uniform(labels_of: MutableMapping[Tensor, Any], tensors: Iterable[Tensor], *, written: bool) -> bool:
    """What was filled with one value may hold others from now on, by itself or through a view. Was there such a tensor?

    Until it is ``written`` into it is the same along all axes.
    """
    found = False
    for tensor in tensors:
        labels = labels_of.get(tensor)
        if isinstance(labels, Labels) and labels.uniform:
            alike = frozenset() if written else frozenset(range(tensor.dim()))
            labels_of[tensor] = replace(labels, uniform=False, alike=alike)
            found = True
    return found
