"""Fabric: a pruner on what ``fabric.setup`` returned; it goes into the state of ``fabric.save`` like a model."""

from pathlib import Path
from typing import Any

from demp.integrations.common import create, raise_if_many_processes, raise_if_wrapped
from demp.pruner import Pruner


def attach(
    fabric: Any,
    model: Any,
    optimizer: Any,
    *,
    example_inputs: Any,
    total_steps: int,
    method: str = "demp",
    **options: Any,
) -> Pruner:
    """Attach a pruner after ``model, optimizer = fabric.setup(model, optimizer)``.

    ``options`` are those of `demp.methods.create`.
    """
    raise_if_many_processes(fabric.world_size)
    raise_if_wrapped(model)
    settings = {"method": method, "example_inputs": example_inputs, **options}
    return create(getattr(model, "module", model), getattr(optimizer, "optimizer", optimizer), total_steps, settings)


def load(fabric: Any, path: str | Path, state: dict[str, Any], **options: Any) -> dict[str, Any]:
    """``fabric.load``, pruners first: they replay the cuts that give the weights their shapes."""
    ordered = dict(sorted(state.items(), key=lambda item: not isinstance(item[1], Pruner)))
    remainder = fabric.load(path, ordered, **options)
    state.update(ordered)
    return remainder
