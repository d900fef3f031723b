"""What a model costs: neurons, parameters, forward FLOPs from real shapes, and the paper's FLOPs beside them."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from demp import wrappers
from demp.graph import NeuronGraph, trace
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
        """Plain numbers."""
        return asdict(self)


def cost(model: nn.Module, example_inputs: Any, *, graph: NeuronGraph | None = None) -> Cost:
    """The cost of ``model`` as it stands, for one forward on ``example_inputs``."""
    model = wrappers.inside(model)
    graph = graph or trace(model, example_inputs)
    flops = graph.flops(graph.nothing_gone())
    record = record_of(model)
    paper = flops if record is None else round(record.paper_flops * flops / max(record.flops, 1))
    tensors = [*model.parameters(), *model.buffers()]
    return Cost(
        neurons=graph.neurons(),
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        paper_flops=paper,
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )
