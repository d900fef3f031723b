"""An RMS norm of the channels that are left, as if the others were zeros.

A channel that is zero adds nothing to the sum of squares; only its number counts. With n channels and n' that are left

    x / sqrt(sum(x^2) / n + eps) * w  =  x / sqrt(sum(x^2) / n' + eps * n / n') * w * sqrt(n / n').

A layer norm has no such form: it takes the mean out of every channel, also of one that is zero.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from demp.errors import UsageError


def named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``torch.rms_norm`` by their names."""
    names = ("input", "normalized_shape", "weight", "eps")
    return {"weight": None, "eps": None, **dict(zip(names, args, strict=False)), **kwargs}


def normalized(operand: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], width: int, share: float) -> Any:
    """``torch.rms_norm`` of the ``width`` channels that are left, a ``share`` of all: as if the others were zeros."""
    given = named(args, kwargs)
    weight, eps, factor = given["weight"], given["eps"], share**-0.5
    if eps is None:
        eps = smallest_step(operand)
    scaled = None if weight is None else weight * factor
    out = torch.rms_norm(operand, (width,), scaled, eps / share)
    return out * factor if weight is None else out


def smallest_step(operand: Any) -> float:
    """What ``torch.rms_norm`` adds where no ``eps`` is given: that of the type it computes in, at least float32."""
    if not isinstance(operand, Tensor):
        raise UsageError(
            "torch.fx does not know the type that an RMSNorm without eps computes in, which a cut has to keep; give it "
            "an eps, or use torch.export or torch.jit.trace, which run the forward"
        )
    return torch.finfo(torch.promote_types(operand.dtype, torch.float32)).eps
