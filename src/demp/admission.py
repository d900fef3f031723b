"""What a pruner accepts: a plain module with removable neurons, and the optimizers that hold its parameters."""

from collections.abc import Sequence

import torch
from torch import nn

from demp.compiled import original
from demp.errors import UsageError
from demp.graph import NeuronGraph


def refuse_wrapper(model: nn.Module) -> None:
    """The pruner works on the module itself, which it finds inside a compiled one."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    kind = type(original(model)).__name__
    if kind in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        raise UsageError(f"model is wrapped in {kind}; pass the module inside (model.module)")


def refuse_nothing_removable(model: nn.Module, graph: NeuronGraph) -> None:
    """A model without removable neurons has nothing to gain."""
    if not any(bool(layer.removable.any()) for layer in graph.layers):
        reasons = "; ".join(dict.fromkeys(f"{r.name}: {r.reason}" for r in graph.refused[:3]))
        why = reasons or "no activation function follows a convolution or linear layer"
        raise UsageError(f"{type(model).__name__} has no layer whose neurons can be removed ({why})")


def refuse_foreign_optimizer(model: nn.Module, graph: NeuronGraph, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Parameters that shrink must be in the optimizers that were given, or their state would go stale."""
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    shrinking = {slot.tensor for slot in graph.slots}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if named and not any(id(p) in held for p in named.values()):
        raise UsageError("the optimizer holds none of the model's parameters; build it from this model's parameters()")
    missing = [name for name, p in named.items() if name in shrinking and id(p) not in held]
    if missing:
        raise UsageError(
            f"{missing[0]} is trainable but in none of the given optimizers; pass every optimizer as a list "
            "(with attach=False), or set requires_grad=False"
        )
