"""Norms of a stream that lost channels, as if those were zeros.

A channel that is zero adds nothing to a sum or to a sum of squares; only its number counts. With n channels of which
n' are left, an RMS norm is

    x / sqrt(sum(x^2) / n + eps) * w  =  x / sqrt(sum(x^2) / n' + eps * n / n') * w * sqrt(n / n').

A layer norm has no such form: with the mean m and the variance v of the channels that are left, that of all of them is
``v * n' / n + m^2 * (n' / n) * (1 - n' / n)``, which no scale and eps can say. It runs over the zeros, too, and what it
makes of them is dropped: nothing, where its scale and shift are zero there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from demp.errors import UsageError

NAMES = {
    "norm": ("input", "normalized_shape", "weight", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
}
"""Kind of a call -> its arguments, in order."""


def named(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``torch.rms_norm`` or ``torch.layer_norm`` by their names."""
    return {"weight": None, "bias": None, "eps": None, **dict(zip(NAMES[kind], args, strict=False)), **kwargs}


def normalized(operand: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], width: int, share: float) -> Any:
    """``torch.rms_norm`` of the ``width`` channels that are left, a ``share`` of all: as if the others were zeros."""
    given = named("norm", args, kwargs)
    weight, eps, factor = given["weight"], given["eps"], share**-0.5
    if eps is None:
        eps = smallest_step(operand)
    scaled = None if weight is None else weight * factor
    out = torch.rms_norm(operand, (width,), scaled, eps / share)
    return out * factor if weight is None else out


def layer_normalized(operand: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], width: int, share: float) -> Any:
    """``torch.layer_norm`` of the ``width`` channels that are left, a ``share`` of all: as if the others were zeros."""
    given = named("layer_norm", args, kwargs)
    whole = round(width / share)
    weight, bias = (None if p is None else F.pad(p, (0, whole - width)) for p in (given["weight"], given["bias"]))
    eps = {} if given["eps"] is None else {"eps": given["eps"]}
    out = F.layer_norm(F.pad(operand, (0, whole - width)), (whole,), weight, bias, **eps)
    return out.narrow(-1, 0, width).contiguous()


NORMALIZED = {"norm": normalized, "layer_norm": layer_normalized}
"""Kind of a call -> how it runs over the channels that are left."""


def smallest_step(operand: Any) -> float:
    """What ``torch.rms_norm`` adds where no ``eps`` is given: that of the type it computes in, at least float32."""
    if not isinstance(operand, Tensor):
        raise UsageError(
            "torch.fx does not know the type that an RMSNorm without eps computes in, which a cut has to keep; give it "
            "an eps, or use torch.export or torch.jit.trace, which run the forward"
        )
    return torch.finfo(torch.promote_types(operand.dtype, torch.float32)).eps
