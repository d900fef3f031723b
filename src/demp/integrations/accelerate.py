"""Accelerate: a pruner on what ``accelerator.prepare`` returned, its state in every ``accelerator.save_state``."""

from typing import Any

from demp.integrations.common import create, raise_if_many_processes, raise_if_wrapped, read_state, write_state
from demp.pruner import Pruner


def attach(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    *,
    example_inputs: Any,
    total_steps: int,
    method: str = "demp",
    **options: Any,
) -> Pruner:
    """Attach a pruner after ``model, optimizer, ... = accelerator.prepare(model, optimizer, ...)``.

    ``accelerator.load_state`` replays the cuts before it loads the weights. ``options`` are those of
    `demp.methods.create`.
    """
    raise_if_many_processes(accelerator.num_processes)
    raise_if_wrapped(model)
    settings = {"method": method, "example_inputs": example_inputs, **options}
    inner = getattr(optimizer, "optimizer", optimizer)
    pruner = create(accelerator.unwrap_model(model), inner, total_steps, settings)
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: write_state(pruner, folder))
    accelerator.register_load_state_pre_hook(lambda models, folder: pruner.load_state_dict(read_state(folder)))
    return pruner
