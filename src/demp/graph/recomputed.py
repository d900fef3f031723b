"""What a backward runs again of a training forward (checkpointing), and where it stands in the code."""

import inspect
import logging
import random
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from demp.graph import branches, calls, carrying_out, joins, sums
from demp.graph.call_following import follow_call, follow_sum
from demp.graph.inputs import tensors_in
from demp.graph.joins import SumSeat
from demp.graph.trace_state import TraceState

logger = logging.getLogger("demp")
TORCH = str(Path(torch.__file__).parent)
BETWEEN = (TORCH, __file__, branches.__file__, carrying_out.__file__, joins.__file__, sums.__file__)
"""Code that runs between a sum and what notes it."""

PLANNED = frozenset(
    {"add", "add_", "split", "split_with_sizes", "slice", "view", "_unsafe_view", "mean", "convolution"}
)
"""Operations of which a cut may plan how they run."""

Position = tuple[CodeType, int]
"""Where an operation stands: the function's code and the instruction."""


class UserCalls:
    """Follows the sums and calls of the user's code in one forward, and notes which of them the backward runs again."""

    def __init__(self, trace: TraceState, ran: Counter[str], seed: int) -> None:
        self.trace, self.ran, self.seed = trace, ran, seed
        self.positions: dict[SumSeat | calls.CallSeat, Position] = {}
        """Where each sum and call stands."""
        self.recomputed: set[Position] = set()
        """Where those stand that the backward ran again, outside of any module."""
        self.by_chance = False
        """Did a training forward draw from Python's own random numbers?"""
        self._may_recompute = False

    def sum(self, seat: SumSeat, func: Any, args: tuple[Any, ...]) -> Tensor:
        """Follow a residual sum, and note where it stands."""
        self._note(seat)
        return follow_sum(self.trace, seat, func, args)

    def call(self, seat: calls.CallSeat, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow a call that depends on the number of neurons."""
        self._note(seat)
        return follow_call(self.trace, seat, func, args, kwargs)

    def _note(self, seat: SumSeat | calls.CallSeat) -> None:
        self._may_recompute = self._may_recompute or is_recomputed()
        self.positions[seat] = position()

    def after_training(self, out: Any) -> None:
        """After a training forward: run its backward if it may run again sums or calls that a cut plans."""
        recording = self.trace.recording
        self.by_chance = random.getstate() != random.Random(self.seed).getstate()
        if self._may_recompute and (recording.joins or any(seen.needed for seen in recording.calls)):
            self.trace.paused, once = True, self.ran.copy()
            with Recomputed(self.trace.modules, self.recomputed):
                run_backward(out)
            self.ran.clear()  # a module that is computed again is the same call of it
            self.ran.update(once)


class Recomputed(TorchDispatchMode):
    """Collects the sums and the like that a backward runs again outside of modules; no function mode reaches there."""

    def __init__(self, stack: list[str], found: set[Position]) -> None:
        super().__init__()
        self.stack, self.found = stack, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note where a sum stands in the code; let everything pass."""
        if not self.stack and func._schema.name.removeprefix("aten::") in PLANNED:
            self.found.add(position())
        return func(*args, **(kwargs or {}))


def position() -> Position:
    """Where the code stands that asked for the operation which runs now."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(BETWEEN):
        frame = frame.f_back
    assert frame is not None
    return frame.f_code, frame.f_lasti


def is_recomputed() -> bool:
    """May the backward run again what runs now? Checkpointing hides tensors by hooks, or runs without a graph."""
    internal: Any = torch._C
    return internal._autograd._top_saved_tensors_default_hooks(False) is not None or not torch.is_grad_enabled()


def run_backward(out: Any) -> None:
    """Backpropagate ones from all outputs that have gradients; nothing is seen of a backward that fails."""
    ends = [leaf for leaf in tensors_in(out) if leaf.grad_fn is not None and leaf.is_floating_point()]
    try:
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
    except Exception as error:  # an operation without a backward on this device
        logger.debug("the backward does not run: %s", error)
