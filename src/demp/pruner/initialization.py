"""New weights for a model as it stands: what its own constructor would have drawn at these widths."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from demp.errors import UsageError

RESETS = ("reset_parameters", "_reset_parameters")
"""Methods by which torch's modules draw their weights; a model may have one for all that it holds."""


def draw_weights(model: nn.Module, seed: int) -> None:
    """Draw all parameters anew and reset the statistics of norms, as at construction; a function of the seed.

    A module's own ``reset_parameters`` is asked, the outermost first, and does for all that is inside it if it belongs
    to no module of torch.

    Raises:
        UsageError: a module holds parameters and has no such method; nothing was drawn.
    """
    resets = list(resetting(model))
    with torch.random.fork_rng(devices=[p.device for p in model.parameters() if p.is_cuda][:1]), torch.no_grad():
        torch.manual_seed(seed)
        for reset in resets:
            reset()


def resetting(module: nn.Module, path: str = "") -> Iterator[Callable[[], object]]:
    """The methods to call, in the order of the modules.

    Raises:
        UsageError: a module holds parameters and has no such method.
    """
    reset = next((getattr(module, name) for name in RESETS if callable(getattr(module, name, None))), None)
    if reset is None and (own := [name for name, _ in module.named_parameters(recurse=False)]):
        raise UsageError(
            f"{path or 'the model'} ({type(module).__name__}) holds {own[0]} and has no reset_parameters(), so its "
            "weights cannot be drawn anew; give it that method"
        )
    if reset is not None:
        yield reset
        if not type(module).__module__.startswith("torch."):
            return
    for name, child in module.named_children():
        yield from resetting(child, f"{path}.{name}" if path else name)


def reset_children(model: nn.Module) -> None:
    """Draw the weights of everything inside a model anew, for its own ``reset_parameters`` to begin with."""
    for name, child in model.named_children():
        for reset in list(resetting(child, name)):
            reset()
