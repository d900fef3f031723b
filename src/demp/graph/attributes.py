"""Numbers that modules keep in attributes and that their forwards read: they must follow a cut."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from demp.graph.neurons import NeuronGraph

COUNTS = ("groups", "nf", "num_features")
"""Groups of a convolution, output features of transformers' Conv1D, channels of an instance norm."""


def counted(module: nn.Module) -> tuple[str, str, int] | None:
    """(attribute, tensor, axis of the tensor that the attribute counts), for kinds of modules known by name."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "nf", "weight", 1
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.affine:
        return "num_features", "weight", 0
    return None


@contextmanager
def attributes_of(model: nn.Module, graph: NeuronGraph, gone: Tensor) -> Iterator[None]:
    """Modules count what stays; restored after."""
    changed = []
    for (path, name), classes in graph.attributes.items():
        module = model.get_submodule(path)
        if hasattr(module, name):
            changed.append((module, name, getattr(module, name)))
            setattr(module, name, int((~gone[classes]).sum()))
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
