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
    """What `demp.cost` counts: the size of a model, and the arithmetic of one forward on the example inputs."""

    neurons: int
    """Neurons over all layers of `demp.trace`."""
    parameters: int
    """Entries of all parameters, each tied parameter once."""
    flops: int
    """Multiplies and adds of convolutions and matrix products (2 per multiply-add), from the shapes that ran."""
    paper_flops: int
    """The paper's convention: dense FLOPs of each operation times the share of its outputs that is left; the shrunken
    input width is ignored. Equal to ``flops`` for a model that was never cut."""
    bytes: int
    """Bytes of memory that parameters and buffers take."""

    def to_dict(self) -> dict[str, int]:
        """Return the costs by name, ready for JSON."""
        return asdict(self)


def cost(model: nn.Module, example_inputs: Any, *, graph: NeuronGraph | None = None) -> Cost:
    """Count neurons, parameters, FLOPs and bytes of ``model`` as it stands, for one forward on ``example_inputs``.

    FLOPs are those of the whole batch in ``example_inputs``: give one example for FLOPs per example. A cut model is
    enough; it remembers what the paper's convention needs. With ``graph`` (of `demp.trace` on the model as it stands)
    nothing is traced again.

    Raises:
        TraceError: the model does not run on the example inputs.

    >>> import demp
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> found = demp.cost(model, torch.zeros(1, 4))
    >>> found.neurons, found.parameters, found.flops
    (8, 58, 96)
    """
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
