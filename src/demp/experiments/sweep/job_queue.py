"""What is to be done next in a sweep."""

from collections.abc import Sequence
from typing import Protocol

from demp.experiments.sweep.job import Job
from demp.experiments.sweep.store import Store


class JobSource(Protocol):
    """Where more jobs come from when all are handed out: a search that looks at results first."""

    def left(self) -> int:
        """Return the number of jobs that are still to come."""
        ...

    def more(self) -> list[Job]:
        """Return the next jobs; none when no more are wanted."""
        ...


class JobQueue:
    """Jobs that have not ended, in their order; of equal jobs the first is handed out and its result counts for all."""

    def __init__(self, store: Store, jobs: Sequence[Job], source: JobSource | None = None) -> None:
        self.store, self.source = store, source
        self.waiting = list(jobs)
        self._known = {job.identity for job in jobs}

    @property
    def remaining(self) -> int:
        """The number of jobs that wait, those that are still to be chosen among them."""
        return len(self.waiting) + (self.source.left() if self.source else 0)

    def next(self) -> Job | None:
        """Return the next job, written down in the folder as begun; None when there is none.

        Raises:
            UsageError: another job was begun under its name.
        """
        while not self.waiting:
            more = self.source.more() if self.source else []
            if not more:
                return None
            self._add(more)
        job = self.waiting.pop(0)
        self.store.note(job)
        return job

    def _add(self, jobs: Sequence[Job]) -> None:
        """Append what neither waits, runs nor has ended under another name."""
        ended = self.store.of(jobs)
        for job in jobs:
            if job.name not in ended and job.identity not in self._known:
                self.waiting.append(job)
            self._known.add(job.identity)

    def put_back(self, job: Job) -> None:
        """Hand this job out again, before all others."""
        self.waiting.insert(0, job)
