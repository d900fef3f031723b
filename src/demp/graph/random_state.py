"""The random state of a process while demp runs a model by itself."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

SEED = 0
"""Of what a training forward draws."""


@contextmanager
def random_kept(cuda: list[int], *, seed: int | None = None) -> Iterator[None]:
    """All random states as before; inside those of a seed, if any, so that every rank and every restart draws alike."""
    numpy: Any = sys.modules.get("numpy")
    state, others = random.getstate(), None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        try:
            if seed is not None:
                for generator in (torch.default_generator, *(torch.cuda.default_generators[n] for n in cuda)):
                    generator.manual_seed(seed)
                random.seed(seed)
                if numpy is not None:
                    numpy.random.seed(seed)
            yield
        finally:
            random.setstate(state)
            if numpy is not None:
                numpy.random.set_state(others)
