"""What a recurrent layer does to neurons: its first layer reads them with one weight per direction, as one contraction.

The call is followed as a whole. What it consists of depends on the device: on some it is one operation, on others the
input is multiplied once for all steps, or step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from demp.graph.contraction_rules import read
from demp.graph.elements import Labels

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer

HIDDEN = "hidden units of an RNN: every step reads those of the step before, and demp does not follow them"


def recurrent(tracer: Tracer, args: tuple[Any, ...], out: Any) -> list[tuple[Tensor, Labels]]:
    """Labels of what the layer makes, which carries no neurons that may go; of the inputs those that it reads may."""
    source, labels = args[0], tracer.labels(args[0])
    lists = [a for a in args[1:] if isinstance(a, (list, tuple)) and a and all(isinstance(t, Tensor) for t in a)]
    weights = lists[-1]
    for tensor in tree_leaves(args[1:]):
        if isinstance(tensor, Tensor) and not any(tensor is weight for weight in weights):
            tracer.freeze_tensor(tensor, HIDDEN)
    for axis in labels.axes[:-1]:
        tracer.freeze_axis(axis, "a recurrent layer runs over the neuron axis")
    steps, found = source.numel() // max(source.shape[-1], 1), False
    for weight in weights:
        own = tracer.labels(weight)
        first = (own.source or "").rpartition(".")[2].startswith("weight_ih_l0")
        if first:
            found = True
            read(tracer, labels, source.dim() - 1, own, 1, operand=0)
        for dim, axis in enumerate(own.axes):
            if not (first and dim == 1):
                tracer.freeze_axis(axis, HIDDEN)
        if weight.dim() == 2:
            tracer.contraction(own.source, 2 * steps * weight.numel(), own.axes[1] if first else None, own.axes[0])
    if not found:
        tracer.freeze_tensor(source, "read by computed weights of a recurrent layer")
    return [(t, tracer.bare(t)) for t in tree_leaves(out) if isinstance(t, Tensor)]
