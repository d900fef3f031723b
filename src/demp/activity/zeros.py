"""The share of zeros among a neuron's outputs (APoZ, Hu et al. 2016)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity import reductions
from demp.activity.observe import layer_positions, observing, quiet
from demp.graph import GraphState, Read
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied
from demp.parallel import ALONE, Context


def share_of_zeros(
    model: nn.Module, state: GraphState, batches: Iterable[Any], context: Context = ALONE
) -> tuple[Tensor, int, int]:
    """Per class, float64: zeros among what its readers see, over all examples and positions; 1 where nothing is read.

    A neuron with several readers counts what each of them sees. With it the numbers of batches and examples.
    """
    graph = state.graph
    zeros = torch.zeros(graph.classes, dtype=torch.float64, device="cpu")
    total = torch.zeros(graph.classes, dtype=torch.float64, device="cpu")
    count = examples = 0

    def look(read: Read, operand: Tensor) -> None:
        zero = reductions.zeros(operand.detach(), read.axis).double().cpu()
        looked_at = operand.numel() / len(zero)
        for part in layer_positions(state, read):
            classes = graph.layers[part.layer].classes[part.neuron]
            zeros.index_add_(0, classes, zero[part.positions])
            total.index_add_(0, classes, torch.full((len(classes),), looked_at, dtype=torch.float64, device="cpu"))

    with quiet(model), observing(model, graph, look):
        for batch in batches:
            args, kwargs = copied(as_inputs(batch))
            model(*args, **kwargs)
            count += 1
            examples += next((len(t) for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()), 0)
    zeros, total = (context.mean(values) for values in (zeros, total))
    counts = context.total([count, examples])
    return torch.where(total > 0, zeros / total.clamp(min=1e-300), 1.0), int(counts[0]), int(counts[1])
