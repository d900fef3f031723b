"""Does the file that was written answer as the model does?"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import ExportError
from demp.exports.examples import Answer, answers, rows

BATCH_SIZES = (1, 2, 5, 16)
"""At which every export is compared with the model."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest output difference, over the output scale, of another order of summation; by the coarsest type involved."""


def tolerance_of(tensors: Iterable[Tensor]) -> float:
    """The tolerance of a model with these tensors."""
    return max((TOLERANCE.get(t.dtype, 0.0) for t in tensors), default=0.0)


def proven(model: nn.Module, answer: Answer, example_inputs: Any, what: str) -> tuple[float, float]:
    """The largest difference between ``answer`` and the model at every batch size, and what was allowed.

    Raises:
        ExportError: the file does not run at one of the batch sizes, or answers differently.
    """
    worst = allowed = 0.0
    for size in BATCH_SIZES:
        inputs = rows(example_inputs, size)
        wanted = answers(model, inputs)
        allowed = tolerance_of([*model.parameters(), *model.buffers(), *wanted])
        try:
            found = answer(inputs)
        except ExportError:
            raise
        except Exception as error:  # every runtime has errors of its own
            raise ExportError(f"{what} does not run on a batch of {size}: {first_line(error)}") from error
        gap = difference(wanted, found, f"{what} on a batch of {size}")
        if not gap <= allowed:
            raise ExportError(
                f"{what} differs from the model on a batch of {size} by {gap:.1e} of the output scale, more than "
                f"{allowed:g}; nothing was kept"
            )
        worst = max(worst, gap)
    return worst, allowed


def difference(wanted: list[Tensor], found: list[Tensor], what: str) -> float:
    """Largest difference over the scale of each output; endless where one side is no number and the other is.

    Raises:
        ExportError: the shapes differ.
    """
    if [t.shape for t in wanted] != [t.shape for t in found]:
        shapes = [[tuple(t.shape) for t in side] for side in (found, wanted)]
        raise ExportError(f"{what} returns tensors of shape {shapes[0]}, the model {shapes[1]}; nothing was kept")
    worst = 0.0
    for was, now in zip(wanted, found, strict=True):
        was, now = was.detach().cpu(), now.detach().cpu()
        same = (was == now) | (was.isnan() & now.isnan())
        if same.all():
            continue
        gap = (was.double() - now.double()).abs().masked_fill(same, 0.0).max()
        scale = was.double().nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp(min=1e-30)
        ratio = float(gap / scale) if was.is_floating_point() else float("inf")
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
