"""A model in training, and all that must follow when it takes other widths."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from demp.graph.forward import first_names
from demp.parallel import ALONE, Context
from demp.surgery.copies import Copy
from demp.surgery.record import Record


@dataclass(frozen=True)
class LiveModel:
    """The model of one training run on this rank."""

    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    copies: tuple[Copy, ...] = ()
    """Of the model: they are cut with it."""
    base: Record | None = None
    """What the model remembered when its graph was traced."""
    context: Context = ALONE
    """Who trains it."""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Its parameters and buffers, each by its first name."""
        return first_names(self.model)[0]

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """The model, and the copies of it that are modules."""
        return (self.model, *(copied.module for copied in self.copies if copied.module is not None))

    @property
    def entries(self) -> int:
        """How many entries the parameters have, all together."""
        return sum(p.numel() for p in self.model.parameters())
