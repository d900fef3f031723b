"""What a copy or a pickle of a pruner is: its state and its history, and no second hand on any model."""

import pickle
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import Any

from demp.errors import UsageError
from demp.pruner.summary import Summary
from demp.surgery import CutReport


@dataclass(frozen=True, repr=False)
class PrunerCopy:
    """A pruner as it was when it was copied, pickled or sent to another process. It prunes nothing.

    A pruner belongs to one model and one optimizer, whose hooks are not copied either. To go on elsewhere build a
    pruner there and give it ``state_dict()``.
    """

    state: dict[str, Any]
    history: list[CutReport]
    total: Summary
    numbers: dict[str, float]

    def state_dict(self) -> dict[str, Any]:
        """For ``load_state_dict`` of a pruner on the dense model and its optimizer."""
        return self.state

    def summary(self) -> Summary:
        """What the run had come to."""
        return self.total

    def metrics(self) -> dict[str, float]:
        """The numbers of a log line, of that moment."""
        return self.numbers

    @property
    def at_work(self) -> bool:
        """Return False, since a copy of a pruner never prunes."""
        return False

    def detach(self) -> None:
        """Do nothing: a copy of a pruner has no hooks."""

    def before_step(self) -> None:
        """Raise UsageError, since a copy of a pruner cannot prune."""
        self._refuse("before_step")

    def after_step(self) -> None:
        """Raise UsageError, since a copy of a pruner cannot prune."""
        self._refuse("after_step")

    def finish(self) -> None:
        """Raise UsageError, since a copy has no training to finish."""
        self._refuse("finish")

    def attach_to(self, optimizer: Any) -> None:
        """Raise UsageError, since a copy cannot attach to an optimizer."""
        self._refuse("attach_to")

    def _refuse(self, name: str) -> None:
        raise UsageError(
            f"{name}() was called on a copy of a pruner, which prunes nothing: the pruner itself stays with its model "
            "and optimizer. Build a pruner for the copied model as it was dense, and give it copy.state_dict()"
        )

    def __repr__(self) -> str:
        return f"<copy of Pruner {self.total.head()}>"


def pickled(copy: PrunerCopy) -> tuple[Any, ...]:
    """How to make this copy again, for ``__reduce__``.

    A process that is being started takes it as bytes: torch would hand it the shared memory of the tensors, which ends
    with this copy, before the process has begun.
    """
    if get_spawning_popen() is not None:
        return pickle.loads, (pickle.dumps(copy),)
    return PrunerCopy, (copy.state, copy.history, copy.total, copy.numbers)
