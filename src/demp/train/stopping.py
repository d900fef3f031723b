"""How a run is asked to stop before its end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKED = int(signal.SIGTERM)
"""What an observer that asks to stop counts as."""


class TrainingInterrupted(KeyboardInterrupt):
    """A signal asked the run to stop; it did so after a step, with a checkpoint if it can."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopSignal:
    """A handler of signals that remembers the first; a second one does not wait."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Record the first signal, and raise KeyboardInterrupt on a second one."""
        if self.number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM wait until they are asked for: the number of the one that came, or 0.

    Inside another such block it is the same one: what comes while a run ends still stops the sweep around it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, StopSignal):
        yield lambda: handler.number
        return
    mine = StopSignal()
    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: mine.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
