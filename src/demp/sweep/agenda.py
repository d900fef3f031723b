"""What is to be done next in a sweep that several processes may lead."""

from collections.abc import Sequence
from typing import Protocol

from demp.records import DONE
from demp.sweep.claims import Claims
from demp.sweep.job import Job
from demp.sweep.presence import Presence
from demp.sweep.store import Store


class Source(Protocol):
    """Where more jobs come from when all are handed out: a search that looks at results first."""

    def left(self) -> int:
        """How many are still to come."""
        ...

    def more(self) -> list[Job]:
        """The next ones; none when no more are wanted."""
        ...


class Agenda:
    """Jobs that nobody has ended; each is claimed before it is handed out."""

    def __init__(self, store: Store, jobs: Sequence[Job], presence: Presence, source: Source | None = None) -> None:
        self.store, self.source = store, source
        self._waiting: dict[str, Job] = {}
        self._called: dict[str, list[str]] = {}
        """Identity -> names of the jobs that have it."""
        self._add(jobs)
        self.claims = Claims(store.claims, presence)
        self._before = {name: record.get("began") for name, record in store.of(jobs).items()}
        """Of what failed earlier and is done again."""

    @property
    def waiting(self) -> list[Job]:
        """Jobs that nobody has ended and this process has not handed out, in their order."""
        return list(self._waiting.values())

    @property
    def ahead(self) -> int:
        """Jobs that nobody has ended, those to come among them."""
        return len(self._waiting) + (self.source.left() if self.source else 0)

    def next(self) -> Job | None:
        """A job for this process; None while all that is left is in others' hands."""
        while True:
            self._drop_ended()
            job = next((job for job in self._waiting.values() if self.claims.take(job)), None)
            if job is None:
                more = self.source.more() if self.source else []
                if not more:
                    return None
                self._add(more)
                continue
            self._drop_ended()  # its last owner may have ended it just before it let go
            if job.name in self._waiting:
                self.store.note(job)
                del self._waiting[job.name]
                return job
            self.claims.release(job)

    def _drop_ended(self) -> None:
        """Forget what others have done meanwhile."""
        fresh, self._seen = self.store.fresh(self._seen)
        for record in fresh:
            for name in self._called.get(record["identity"], ()):
                if record["status"] == DONE or record.get("began") != self._before.get(name):
                    self._waiting.pop(name, None)

    def _add(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._waiting[job.name] = job
            self._called.setdefault(job.identity, []).append(job.name)
        self._seen = 0  # others may have ended these already

    def back(self, job: Job) -> None:
        """It is to be done after all, by this process: its claim stays."""
        self._waiting = {job.name: job, **self._waiting}
