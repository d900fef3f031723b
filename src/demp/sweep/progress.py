"""What a sweep says of itself while it goes on."""

import time
from collections.abc import Callable, Sequence

from demp.records import FAILED, Record
from demp.sweep import timeleft
from demp.sweep.agenda import Agenda
from demp.sweep.job import Job
from demp.sweep.store import Store
from demp.sweep.training import brief
from demp.train import Observer
from demp.train.run import Run

Say = Callable[[str], None]

EVERY_SECONDS = 60.0
"""Between two lines on the whole, where nothing shows it all the time."""
UNKNOWN = Job(name="unknown", work="", labels={"setting": None})
"""One that is still to be chosen."""


class Progress:
    """Which jobs are done, which are being done, and how long the rest takes."""

    def __init__(
        self, store: Store, jobs: Sequence[Job], agenda: Agenda, *, slots: int, say: Say, status: Say | None = None
    ) -> None:
        self.store, self.jobs, self.agenda, self.running = store, jobs, agenda, list[Job]()
        self.say, self.status = say, status
        self.time = timeleft.TimeLeft(slots, store.of(jobs).values())
        self._places: dict[str, int] = {}
        self._said = time.monotonic()

    def _total(self) -> int:
        """Jobs that are known and those to be chosen."""
        return len(self.jobs) + (self.agenda.source.left() if self.agenda.source else 0)

    def title(self, job: Job) -> str:
        """Its place and name."""
        if job.name not in self._places:
            self._places = {job.name: place for place, job in enumerate(self.jobs, 1)}
        return f"[{self._places[job.name]}/{self._total()}] {job.name}"

    def heading(self, job: Job) -> str:
        """The same for a view of this job, with the time left for all where it is known."""
        left = self._left()
        return self.title(job) if left is None else f"{self.title(job)} ({timeleft.words(left)} for all)"

    def _left(self) -> float | None:
        waiting = [*self.agenda.waiting, *[UNKNOWN] * (self.agenda.ahead - len(self.agenda.waiting))]
        return self.time.left(self.running, waiting)

    def begins(self, job: Job, *, quiet: bool = False) -> None:
        """A job is taken up."""
        self.running.append(job)
        self.time.begins(job)
        if not quiet:
            self.say(f"{self.title(job)}: begins")

    def stops(self, job: Job) -> None:
        """It did not reach its end."""
        self.running.remove(job)
        self.time.ends(job)

    def ends(self, job: Job, record: Record) -> None:
        """It reached its end, or failed."""
        self.running.remove(job)
        self.time.ends(job, record)
        self.say(f"{self.title(job)}: {told(record)}")

    def whole(self) -> str:
        """All in a line."""
        ended = self.store.of(self.jobs).values()
        failed = sum(record["status"] == FAILED for record in ended)
        parts = [f"{len(ended) - failed} of {self._total()} done"]
        parts += [f"{failed} failed"] if failed else []
        parts += [self._step(job) for job in self.running]
        return ", ".join([*parts, timeleft.words(self._left())])

    def _step(self, job: Job) -> str:
        going = self.time.going[job.name]
        return f"{job.name} at step {going.step} of {going.total}" if going.total else f"{job.name} is under way"

    def now(self) -> None:
        """Say how it stands: once a second where a line is kept up to date, now and then elsewhere."""
        if time.monotonic() - self._said >= (EVERY_SECONDS if self.status is None else 1.0):
            self._said = time.monotonic()
            (self.status or self.say)(self.whole())


class Steps(Observer):
    """Tells a sweep how far a run in this process is."""

    def __init__(self, progress: Progress, job: Job, *, aloud: bool) -> None:
        self.progress, self.job, self.aloud = progress, job, aloud

    def start(self, run: Run) -> None:
        """Where it begins."""
        self.progress.time.steps(self.job, run.step, run.total_steps)

    def step(self, run: Run, seconds: float) -> None:
        """One more."""
        self.progress.time.steps(self.job, run.step, run.total_steps)
        if self.aloud:
            self.progress.now()


def told(record: Record) -> str:
    """One job that has ended, in a line."""
    if record["status"] == FAILED:
        return f"failed: {record['error']}"
    return brief(record) if "eval/top1" in record else f"done in {record['seconds']:.0f} s"
