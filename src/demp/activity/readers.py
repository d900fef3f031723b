"""Where training forwards can be watched: the modules whose weights are contracted with neurons."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.observe import OnRead, ReadObserver
from demp.graph import NeuronGraph, Read
from demp.parallel import is_sharded_model, user_class

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def readers_of(model: nn.Module, graph: NeuronGraph) -> dict[str, dict[str, dict[int, Read]]]:
    """Path of a module that can be watched -> weight -> number of the use -> consumer.

    A module can be watched if its input is what its weight is contracted with, or if it has no children, so that its
    operations can be looked at one by one.
    """
    found: dict[str, dict[str, dict[int, Read]]] = {}
    sharded = is_sharded_model(model)
    for read in graph.reads:
        if read.seat is not None:
            continue
        path, _, leaf = read.weight.rpartition(".")
        module = model.get_submodule(path)
        alone = not sharded and next(module.children(), None) is None
        if alone or (leaf == "weight" and reads_its_input(module)):
            found.setdefault(path, {}).setdefault(read.weight, {})[read.use] = read
    return found


def reads_its_input(module: nn.Module) -> bool:
    """Is the module's input what its weight is contracted with? In torch's classes, and where the forward is theirs."""
    kind = user_class(module)
    for base in (nn.Linear, *CONVOLUTIONS):
        if issubclass(kind, base):
            names = [name for name in ("forward", "_conv_forward") if hasattr(base, name)]
            return all(getattr(kind, name) is getattr(base, name) for name in names)
    return False


def input_axis(module: nn.Module, value: Tensor) -> int:
    """Neuron axis of the module's input."""
    return value.dim() - 1 - (0 if isinstance(module, nn.Linear) else module.weight.dim() - 2)  # type: ignore[union-attr]


def operations_of(
    module: nn.Module, weights: Mapping[str, Any], graph: NeuronGraph, on_read: OnRead, uses: dict[str, int]
) -> ReadObserver:
    """A mode that looks at the contractions of one call of ``module``; ``uses`` counts them within one forward."""
    tensors = {name: module.get_parameter(name.rpartition(".")[2]) for name in weights}
    return ReadObserver(graph, tensors, on_read, uses=uses)


def in_backward() -> bool:
    """Does this forward run inside a backward, which recomputes what was seen before (activation checkpointing)?"""
    return torch._C._current_graph_task_id() != -1


def first_length(args: Any, kwargs: Any) -> int:
    """Length of the first tensor among a call's arguments: its examples."""
    first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()), None)
    return 0 if first is None else first.size(0)
