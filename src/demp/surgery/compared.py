"""What a proof compares of a forward: the model's outputs, what the user makes of them, or those of some modules."""

from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.graph.inputs import tensors_in
from demp.graph.recording import Outputs

SPARSE = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
"""Layouts of tensors that are compared as dense ones."""


def compared(model: nn.Module, args: Any, kwargs: Any, outputs: Outputs = None) -> list[Tensor]:
    """Run the model; the tensors that are compared, of modules in the order in which they ran."""
    if outputs is None:
        return dense_tensors(model(*args, **kwargs))
    if callable(outputs):
        out = model(*args, **kwargs)
        try:
            return dense_tensors(outputs(out))
        except Exception:  # in training a model may return something else (losses), all of which counts
            if not model.training:
                raise
            return dense_tensors(out)
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        seen.extend(tensor.clone() for tensor in dense_tensors(out))  # what comes next may write into it

    handles = [model.get_submodule(name).register_forward_hook(keep) for name in outputs]
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def dense_tensors(out: Any) -> list[Tensor]:
    """All tensors of a nested output; sparse ones with their zeros."""
    return [tensor.to_dense() if tensor.layout in SPARSE else tensor for tensor in tensors_in(out)]


def raise_if_unknown_outputs(model: nn.Module, outputs: Outputs) -> None:
    """Neither a function nor names of modules.

    Raises:
        UsageError: what it is instead.
    """
    if outputs is None or callable(outputs):
        return
    if isinstance(outputs, str) or not outputs:
        raise UsageError(
            f"outputs is {outputs!r}; give a list of names of modules, or a function of the model's output"
        )
    known = dict(model.named_modules())
    for name in outputs:
        if name not in known:
            raise UsageError(f"outputs names the module {name!r}, which the model does not have")
