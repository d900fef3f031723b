"""Give tensors other widths, narrower or wider: what is there before and after stays, what returns is zero.

A cut only takes. Going back to an earlier state of a run, whose weights are loaded next, needs removed neurons again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

from demp.errors import UsageError
from demp.surgery.shrink import UndoLog, laid_out
from demp.surgery.state import is_packed, is_scalar

Sources = dict[str, dict[int, Tensor]]
"""Tensor name -> axis -> for each index that will be there, where it is now; -1: it returns."""


@torch.no_grad()
def refitted(tensor: Tensor, sources: Mapping[int, Tensor]) -> Tensor:
    """A copy at the new widths, in the memory format of the original; entries that return are zero (of masks, true)."""
    out = tensor.detach()
    for axis, index in sources.items():
        index = index.to(out.device)
        if out.shape[axis] == 0:
            out = out.new_zeros([len(index) if a == axis else n for a, n in enumerate(out.shape)])
        out = out.index_select(axis, index.clamp(min=0))
        out = out.index_fill(axis, (index < 0).nonzero().flatten(), 1 if out.dtype == torch.bool else 0)
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == dims and laid_out(tensor, memory_format):
            return out.contiguous(memory_format=memory_format)
    return out


def refit_tensors(models: Iterable[Mapping[str, Tensor]], sources: Sources, undo_log: UndoLog) -> None:
    """Tensors of a model and its copies, which may share some, take their new widths; their gradients are dropped."""
    models = list(models)
    for name, index in sources.items():
        own = {id(tensors[name]): tensors[name] for tensors in models if name in tensors}
        for tensor in own.values():
            undo_log.put(tensor, refitted(tensor, index))


def raise_if_unsaved(model: nn.Module, sources: Sources) -> None:
    """Nobody loads a buffer that is not saved: entries of it cannot return.

    Raises:
        UsageError: some would.
    """
    saved = model.state_dict(keep_vars=True).keys()
    for name, index in sources.items():
        if name not in saved and any(bool((one < 0).any()) for one in index.values()):
            raise UsageError(
                f"{name} is a buffer that no state dict holds, and entries of it were cut that would have to return; "
                "build the model anew"
            )


def refit_states(
    optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor], sources: Sources, undo_log: UndoLog
) -> tuple[str, ...]:
    """What optimizers remember follows before the tensors do; the names of those that forgot something.

    What is shaped like its parameter keeps the entries that stay, and those that return are zero. Of a parameter with
    state of another kind (factors, packed numbers, LBFGS's history) everything is forgotten.
    """
    forgot: dict[str, None] = {}
    for optimizer in optimizers:
        owners = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = {name: index for name, index in sources.items() if name in tensors and id(tensors[name]) in owners}
        if mine and isinstance(optimizer, LBFGS):
            undo_log.entry(vars(optimizer), "_numel_cache", None)
            forgot |= dict.fromkeys(forget_states([optimizer], list(optimizer.state), undo_log))
            continue
        for name, index in mine.items():
            state = optimizer.state.get(tensors[name])
            if state and not follows(state, tensors[name]):
                forgot |= dict.fromkeys(forget_states([optimizer], [tensors[name]], undo_log))
            elif state:
                for key, value in state.items():
                    undo_log.entry(state, key, refitted_tree(value, tensors[name].shape, index))
    return tuple(forgot)


def forget_states(optimizers: Iterable[Optimizer], parameters: Iterable[Tensor], undo_log: UndoLog) -> tuple[str, ...]:
    """What optimizers remember of these parameters goes; the names of those that remembered something."""
    forgot, parameters = [], list(parameters)
    for optimizer in optimizers:
        for parameter in parameters:
            if optimizer.state.get(parameter):
                undo_log.entry(optimizer.state, parameter, {})
                forgot.append(type(optimizer).__name__)
    return tuple(dict.fromkeys(forgot))


def follows(state: Mapping[Any, Any], parameter: Tensor) -> bool:
    """Is all of it a scalar or shaped like its parameter, in ordinary tensors?"""
    leaves = tree_leaves(dict(state))
    shaped = (is_scalar(leaf) or (isinstance(leaf, Tensor) and leaf.shape == parameter.shape) for leaf in leaves)
    return all(shaped) and not is_packed(dict(state))


def refitted_tree(value: Any, shape: torch.Size, index: Mapping[int, Tensor]) -> Any:
    """The same tree with every tensor of ``shape`` at the new widths."""
    return tree_map_only(Tensor, lambda t: refitted(t, index) if t.shape == shape and t.dim() else t, value)
