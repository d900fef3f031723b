"""The losses of a run, and the end of one whose loss is no longer a number."""

import math

import torch
from torch import Tensor

from demp.errors import DempError
from demp.parallel import Context


class TrainingDiverged(DempError, RuntimeError):
    """The loss or a weight is no longer a number; the run stopped."""


class LossWatch:
    """Losses since the last log line; raises at the first that is not a number.

    On a GPU each loss travels to the host while the next step is queued, so that nothing waits: the
    check comes one step late there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.values: list[float] = []
        self._pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def add(self, step: int, loss: Tensor) -> None:
        """Take note of the loss of ``step``."""
        self.flush()
        if self.device.type != "cuda":
            self._take(step, float(loss))
            return
        host = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (step, host, event)

    def share(self, context: Context) -> None:
        """Every rank takes the mean over ranks of each loss."""
        self.flush()
        if not context.alone:
            by_step = zip(*context.gathered(self.values), strict=True)
            self.values = [sum(losses) / len(losses) for losses in by_step]

    def flush(self) -> None:
        """Wait for a loss on its way."""
        if self._pending is not None:
            step, host, event = self._pending
            event.synchronize()
            self._pending = None
            self._take(step, float(host))

    def _take(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(f"the loss became {value} at step {step + 1}")
        self.values.append(value)
