"""What is to be done next in a sweep that several processes may lead."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from demp.records import DONE, Record
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
        self.store, self.waiting, self.source = store, list(jobs), source
        self.claims = Claims(store.claims, presence)
        self._before = {name: record.get("began") for name, record in store.of(jobs).items()}
        """Of what failed earlier and is done again."""

    @property
    def ahead(self) -> int:
        """Jobs that nobody has ended, those to come among them."""
        return len(self.waiting) + (self.source.left() if self.source else 0)

    def next(self) -> Job | None:
        """A job for this process; None while all that is left is in others' hands."""
        while True:
            self._drop_ended()
            job = next((job for job in self.waiting if self.claims.take(job)), None)
            if job is None:
                more = self.source.more() if self.source else []
                if not more:
                    return None
                self.waiting += more
                continue
            self._drop_ended()  # its last owner may have ended it just before it let go
            if job in self.waiting:
                self.store.note(job)
                self.waiting.remove(job)
                return job
            self.claims.release(job)

    def _drop_ended(self) -> None:
        """Forget what others have done meanwhile."""
        ended = self.store.of(self.waiting)
        self.waiting = [job for job in self.waiting if not self._new(job, ended.get(job.name))]

    def _new(self, job: Job, record: Record | Mapping[str, Any] | None) -> bool:
        return record is not None and (record["status"] == DONE or record.get("began") != self._before.get(job.name))

    def back(self, job: Job) -> None:
        """It is to be done after all, by this process: its claim stays."""
        self.waiting.insert(0, job)
