"""Keep the moments of dead neurons out of the denormal numbers, which some CPUs compute with several times slower.

A dead neuron has no gradient, so its moments decay by a factor per step, through ever smaller numbers. Everything below
``TINY`` is far too small to move a weight; set to zero before it gets near the denormals, it costs nothing any more.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from demp.parallel import local_piece

EVERY_STEPS = 100
"""A momentum of 0.9 takes 175 steps from ``TINY`` to the first denormal number."""
TINY = 1e-30
ORDINARY = (Tensor, torch.nn.Parameter)


@torch.no_grad()
def sweep(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Zero every entry of optimizer state on the CPU that is below ``TINY``; returns how many there were.

    Tensors of other classes (packed into few bits) know no denormal numbers, and few operations.
    """
    found = 0
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for value in map(local_piece, state.values()):
                if type(value) in ORDINARY and value.dtype == torch.float32 and value.dim() and not value.is_cuda:
                    small = (value.abs() < TINY) & (value != 0)
                    found += int(small.sum())
                    value.masked_fill_(small, 0.0)
    return found
