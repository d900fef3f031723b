"""Prove a cut: outputs before and after on the examples that showed the death."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.criteria import Criterion
from demp.activity.observe import OnRead, observing, quiet
from demp.activity.tally import Tally
from demp.errors import CutError
from demp.graph import GraphState, Read
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied
from demp.surgery.compared import Outputs, compared

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest output difference, over the output scale, that rounding explains."""
TF32_TOLERANCE = 1e-2


def tolerance_for(outputs: list[Tensor]) -> float:
    """The largest difference, over the largest output, that rounding in the coarsest type of the outputs explains."""
    worst = max((TOLERANCE.get(t.dtype, 1e-1) for t in outputs if t.is_floating_point()), default=1e-10)
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return (
        max(worst, TF32_TOLERANCE) if tf32 and any(t.is_cuda and t.dtype == torch.float32 for t in outputs) else worst
    )


def outputs_of(model: nn.Module, example_inputs: Any, outputs: Outputs = None) -> list[Tensor]:
    """All tensors that are compared, in evaluation mode."""
    args, kwargs = copied(as_inputs(example_inputs))
    with quiet(model):
        return compared(model, args, kwargs, outputs)


def masked_outputs_of(
    model: nn.Module, before: GraphState, after: GraphState, example_inputs: Any, outputs: Outputs = None
) -> list[Tensor]:
    """The same with every neuron that is about to be removed zeroed wherever it is read."""
    args, kwargs = copied(as_inputs(example_inputs))
    with quiet(model), observing(model, before.graph, zeroing(before, after)):
        return compared(model, args, kwargs, outputs)


def zeroing(before: GraphState, after: GraphState) -> OnRead:
    """What zeroes the neurons that are about to be removed, wherever they are read."""

    def zeroed(read: Read, operand: Tensor) -> Tensor:
        stays = (~after.removed[before.present(read.classes)]).to(operand.dtype).to(operand.device)
        if operand.shape[read.axis] != len(stays):
            raise CutError(
                f"{read.weight} reads {operand.shape[read.axis]} neurons where the traced one had {len(stays)}: "
                "it takes other widths now (parts of weights, a switch). Trace it as it is trained"
            )
        shape = [1] * operand.dim()
        shape[read.axis] = -1
        return operand * stays.view(shape)

    return zeroed


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest absolute difference over the largest absolute output; inf where a shape, an integer or a nan differs."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0:
            continue
        if not a.is_floating_point() and not a.is_complex():
            worst = worst if torch.equal(a, b) else float("inf")
            continue
        wide = torch.complex128 if a.is_complex() else torch.float64
        gap, scale = (a.to(wide) - b.to(wide)).abs().max().item(), a.to(wide).abs().max().item()
        if gap != gap:
            return float("inf")
        worst = max(worst, gap / max(scale, torch.finfo(a.dtype).tiny))
    return worst


def live_layers(model: nn.Module, before: GraphState, planned: Mapping[str, Tensor], example_inputs: Any) -> list[str]:
    """Layers among ``planned`` whose neurons are not zero for some consumer on these inputs."""
    args, kwargs = copied(as_inputs(example_inputs))
    tally = Tally(before, Criterion(kind="exact"))
    with quiet(model), observing(model, before.graph, lambda r, v: tally.add(r, v, r.axis)):
        model(*args, **kwargs)
    dead = tally.detect()
    return [name for name, flags in planned.items() if bool((flags & ~dead[name]).any())]


def raise_if_nan(outputs: list[Tensor]) -> None:
    """A model without outputs, or whose outputs are not finite, proves nothing.

    Raises:
        CutError: there are no outputs, or some are not finite.
    """
    if not outputs:
        raise CutError("the model returns no tensors, so a cut cannot be verified; nothing was cut")
    if any(not bool(t.isfinite().all()) for t in outputs):
        raise CutError(
            "the model's outputs on the example inputs are not finite, so a cut cannot be verified; nothing was cut"
        )
