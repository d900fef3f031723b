"""A pruner in one call: DemP, or any method by name."""

import dataclasses
import difflib
import inspect
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn

from demp.errors import UsageError
from demp.methods.base import Method
from demp.methods.demp import DemonPruning
from demp.methods.demp_config import DemPConfig
from demp.pruner import Pruner
from demp.pruner.options import DemPOptions, with_every_option
from demp.surgery.earlier import of_today


def build_config(method: type[Method], config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Split keyword options into the method's config fields and the pruner's arguments.

    Raises:
        UsageError: an option that neither of them has, or the config of another method.
    """
    fields = {f.name for f in dataclasses.fields(method.Config)}
    mine = {k: v for k, v in options.items() if k in fields}
    rest = {k: v for k, v in options.items() if k not in fields}
    known = set(inspect.signature(Pruner.__init__).parameters) - {"self", "model", "optimizer", "method", "config"}
    for name in rest:
        if name not in known:
            near = difflib.get_close_matches(name, fields | known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            if name in {f.name for f in dataclasses.fields(DemPConfig)}:
                hint = ", which is an option of demp alone"
            raise UsageError(f"unknown option {name!r} for {method.name}{hint}")
    if config is not None and not isinstance(config, method.Config):
        raise UsageError(f"config is a {type(config).__name__}; {method.name} takes a {method.Config.__name__}")
    return dataclasses.replace(config or method.Config(), **mine), rest


@with_every_option
def DemP(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    *,
    example_inputs: Any,
    total_steps: int,
    config: DemPConfig | None = None,
    **options: Unpack[DemPOptions],
) -> Pruner:
    """Attach Demon Pruning to a training run: one line, and the loop stays as it is.

    Args:
        model: The network, which shrinks in place; it may be wrapped in DistributedDataParallel.
        optimizer: The optimizer of its parameters, whose step is hooked; None if a trainer makes it later (then call
            ``pruner.attach_to(optimizer)``), several with ``attach=False``.
        example_inputs: Inputs of one forward, as a tuple: any batch will do.
        total_steps: Optimizer steps of the whole run: the schedule is laid over them.
        config: A ``DemPConfig``; the options below replace single fields of it.
    """
    return create(
        DemonPruning,
        model,
        optimizer,
        example_inputs=example_inputs,
        total_steps=total_steps,
        config=config,
        **options,
    )


def create(
    method: type[Method],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    *,
    example_inputs: Any,
    total_steps: int,
    config: Any = None,
    **options: Any,
) -> Pruner:
    """A pruner with this method; ``options`` are fields of its config and arguments of Pruner.

    Raises:
        UsageError: an option that neither of them has, or the config of another method.
    """
    config, rest = build_config(method, config, of_today(options))
    return Pruner(model, optimizer, method, config, example_inputs=example_inputs, total_steps=total_steps, **rest)
