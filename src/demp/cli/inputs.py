"""Example inputs as they are typed: SIZES, SIZES:TYPE, NAME=SIZES:TYPE."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from demp.errors import UsageError

EXAMPLE = "write for example 1,3,32,32 or 1,16:int64 or input_ids=1,16:int64"


def parse_inputs(texts: Sequence[str]) -> tuple[Tensor, ...] | dict[str, Any]:
    """Tensors of zeros in the order in which they were typed, or by name.

    Raises:
        UsageError: a size or a type is none, or only some inputs have names.
    """
    named = {name: one(sizes, text) for text in texts for name, _, sizes in [text.rpartition("=")]}
    if "" not in named:
        return named
    if any("=" in text for text in texts):
        raise UsageError(f"--input has names for some inputs only; give all of them names, or none: {EXAMPLE}")
    return tuple(one(text, text) for text in texts)


def image_of(inputs: tuple[Tensor, ...] | dict[str, Any]) -> tuple[int, int] | None:
    """Channels and side of an image, if that is the only input."""
    if isinstance(inputs, dict) or len(inputs) != 1 or inputs[0].ndim != 4:
        return None
    return inputs[0].shape[1], inputs[0].shape[3]


def one(sizes: str, text: str) -> Tensor:
    """One tensor of zeros; ``text`` is what was typed.

    Raises:
        UsageError: a size or the type is none.
    """
    numbers, _, name = sizes.partition(":")
    dtype = getattr(torch, name.strip() or "float32", None)
    try:
        shape = [int(part) for part in numbers.split(",") if part.strip()]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1 or not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input {text!r} is no size of a tensor; {EXAMPLE}")
    return torch.zeros(shape, dtype=dtype)
