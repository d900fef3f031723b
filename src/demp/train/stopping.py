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


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM wait for the end of a step; a second one does not wait."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
