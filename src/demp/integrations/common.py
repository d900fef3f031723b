"""What the integrations share: what they refuse, and where the pruner's state lies in a checkpoint folder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from demp import methods
from demp.errors import UsageError
from demp.pruner import Pruner

STATE_FILE = "demp.pt"
WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")


def create(model: Any, optimizer: Any, total_steps: int, settings: dict[str, Any]) -> Pruner:
    """The pruner of an integration; ``settings`` are ``method``, ``example_inputs``, what `demp.methods.create` takes.

    Tensors among them go to the model's device.
    """
    device = next(model.parameters()).device
    moved = tree_map_only(Tensor, lambda tensor: tensor.to(device), settings)
    return methods.create(moved.pop("method"), model, optimizer, total_steps=total_steps, **moved)


def raise_if_many_processes(world_size: int) -> None:
    """The integrations were made and tested for one process."""
    if world_size > 1:
        raise UsageError(
            f"this integration works in one process and there are {world_size}; start the training with one"
        )


def raise_if_wrapped(model: nn.Module) -> None:
    """A wrapper around the network keeps what it knew of the uncut one."""
    for part in model.modules():
        if type(part).__name__ in WRAPPERS:
            raise UsageError(
                f"the trainer runs the network inside {type(part).__name__}, which this integration does not "
                "follow; train without it"
            )


def write_state(pruner: Pruner, folder: str | Path) -> None:
    """Put the pruner's state into a checkpoint folder."""
    torch.save(pruner.state_dict(), Path(folder) / STATE_FILE)


def read_state(folder: str | Path) -> dict[str, Any]:
    """The pruner's state in a checkpoint folder.

    Raises:
        UsageError: the folder has none.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise UsageError(f"{folder} holds no {STATE_FILE}: it was written without the pruner, or not completely")
    return torch.load(path, map_location="cpu", weights_only=True)
