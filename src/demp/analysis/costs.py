"""What a model costs: neurons, parameters, forward FLOPs from real shapes, and the paper's FLOPs beside them."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from demp.graph import NeuronGraph, trace
from demp.graph.forward import first_names
from demp.parallel import user_module
from demp.surgery import record_of


@dataclass(frozen=True)
class Cost:
    """Size and arithmetic of one forward on the example inputs."""

    neurons: int
    parameters: int
    flops: int
    """Multiplies and adds of convolutions and matrix products (2 per multiply-add), from the shapes that ran."""
    paper_flops: int
    """The paper's convention: dense FLOPs of each operation times the share of its outputs that is left; the shrunken
    input width is ignored. Equal to ``flops`` for a model that was never cut."""
    bytes: int
    """Parameters and buffers in memory."""

    def to_dict(self) -> dict[str, int]:
        """Return the costs as a dictionary of plain numbers."""
        return asdict(self)


def cost(model: nn.Module, example_inputs: Any, *, graph: NeuronGraph | None = None) -> Cost:
    """The cost of ``model`` as it stands, for one forward on ``example_inputs``."""
    model = user_module(model)
    graph = graph or trace(model, example_inputs)
    flops = graph.dense.flops()
    record = record_of(model)
    paper = flops if record is None else round(record.paper_flops * flops / max(record.flops, 1))
    tensors = [*model.parameters(), *model.buffers()]
    return Cost(
        neurons=graph.dense.neurons,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        paper_flops=paper,
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )


def flops_if_zeros_were_free(model: nn.Module, example_inputs: Any, *, graph: NeuronGraph | None = None) -> float:
    """Theoretical forward FLOPs: each contraction times the share of its weight that is not zero.

    What papers on masks report. What runs the model as it is multiplies by these zeros; ``Cost.flops`` counts that.
    """
    model = user_module(model)
    graph = graph or trace(model, example_inputs)
    tensors, _ = first_names(model)
    flops = graph.dense.flops_by_operation()
    shares = [1.0 if op.weight not in tensors else share_nonzero(tensors[op.weight]) for op in graph.contractions]
    return sum(cost * share for cost, share in zip(flops, shares, strict=True))


def share_nonzero(tensor: Tensor) -> float:
    """Share of the entries that are not zero."""
    return int(tensor.count_nonzero()) / max(tensor.numel(), 1)
