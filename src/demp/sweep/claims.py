"""Whose a job is at the moment, among all who lead a sweep, on one machine or several.

A claim is a file ``claims/IDENTITY.n`` that only one process can create. When its owner is dead, the next one creates
``IDENTITY.n+1``; the highest number counts.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from demp.sweep.job import Job
from demp.sweep.presence import SILENT_SECONDS, Presence, lock
from demp.train import Observer
from demp.train.stopping import ASKED, TrainingInterrupted

LOCK_SECONDS = 0.1


class Claims:
    """The claims of one leader, and its view of the others'."""

    def __init__(self, folder: Path, presence: Presence) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.presence = folder, presence
        self._mine: dict[str, int] = {}

    def take(self, job: Job) -> bool:
        """Make the job this leader's, unless it is another's."""
        number = self._last(job)
        if number and number == self._mine.get(job.identity):
            return True
        if number and self._owned(self.folder / f"{job.identity}.{number}"):
            return False
        try:
            with (self.folder / f"{job.identity}.{number + 1}").open("x", encoding="utf-8") as file:
                json.dump({"leader": self.presence.name, "token": self.presence.token, "name": job.name}, file)
        except FileExistsError:
            return False
        self._mine[job.identity] = number + 1
        return True

    def holds(self, job: Job) -> bool:
        """Is it still this leader's? Another takes over who finds this one silent for long."""
        return self._last(job) == self._mine.get(job.identity)

    def release(self, job: Job) -> None:
        """It has ended, or can be continued by anyone."""
        number = self._mine.pop(job.identity, 0)
        for old in range(1, number + 1):
            with suppress(OSError):
                (self.folder / f"{job.identity}.{old}").unlink()

    def owner(self, job: Job) -> str:
        """The name of the leader whose it is; empty if it is nobody's."""
        file = self.folder / f"{job.identity}.{self._last(job)}"
        return self._said(file)[0] if self._owned(file) else ""

    def _last(self, job: Job) -> int:
        """The highest number; 0 when there is no claim."""
        ends = (file.name.rpartition(".")[2] for file in self.folder.glob(f"{job.identity}.*"))
        return max((int(end) for end in ends if end.isdecimal()), default=0)

    def _said(self, file: Path) -> tuple[str, str]:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return values["leader"], values["token"]
        except (OSError, ValueError, KeyError):
            return "", ""

    def _owned(self, file: Path) -> bool:
        """Does its owner live? A claim without words is being written, unless its writer died over it."""
        leader, token = self._said(file)
        if leader:
            return self.presence.lives(leader, token)
        try:
            return time.time() - file.stat().st_mtime < SILENT_SECONDS
        except OSError:
            return False


@contextmanager
def alone(file: Path, observers: Sequence[Observer] = ()) -> Iterator[None]:
    """Wait until no other process of this machine is inside with the same file: one whose leader died ends soon.

    Raises:
        TrainingInterrupted: an observer asked to stop meanwhile.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not lock(handle):
            if any(observer.asks_to_stop() for observer in observers):
                raise TrainingInterrupted("stopped before it began", 128 + ASKED)
            time.sleep(LOCK_SECONDS)
        yield
    finally:
        os.close(handle)
