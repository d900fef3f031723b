"""What is to be done next in a sweep that several processes may lead."""

from collections.abc import Mapping, Sequence
from typing import Any

from demp.records import DONE
from demp.sweep.claims import Claims
from demp.sweep.job import Job
from demp.sweep.presence import Presence
from demp.sweep.store import Store

Began = Mapping[str, Any]


class Agenda:
    """Jobs that nobody has ended; each is claimed before it is handed out."""

    def __init__(self, store: Store, jobs: Sequence[Job], presence: Presence) -> None:
        self.store, self.waiting = store, list(jobs)
        self.claims = Claims(store.claims, presence)
        self._before = {name: record.get("began") for name, record in store.of(jobs).items()}
        """Of what failed earlier and is done again."""

    def next(self) -> Job | None:
        """A job for this process; None while all that is left is in others' hands."""
        self.drop_ended()
        for job in self.waiting:
            if self.claims.take(job):
                break
        else:
            return None
        self.drop_ended()  # its last owner may have ended it just before it let go
        if job not in self.waiting:
            self.claims.release(job)
            return self.next()
        self.store.note(job)
        self.waiting.remove(job)
        return job

    def drop_ended(self) -> None:
        """Forget what others have done meanwhile."""
        ended = self.store.of(self.waiting)
        self.waiting = [job for job in self.waiting if not self._new(job, ended.get(job.name))]

    def _new(self, job: Job, record: Mapping[str, Any] | None) -> bool:
        return record is not None and (record["status"] == DONE or record.get("began") != self._before.get(job.name))

    def back(self, job: Job) -> None:
        """It is to be done after all, by this process: its claim stays."""
        self.waiting.insert(0, job)

    def owners(self) -> list[str]:
        """Who has what is left."""
        return sorted({owner for job in self.waiting if (owner := self.claims.owner(job))})
