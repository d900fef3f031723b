"""The progress of a sweep, and the lines that report it."""

import time
from collections.abc import Callable, Sequence

from demp.experiments.sweep import timeleft
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.job_queue import JobQueue
from demp.experiments.sweep.store import Store
from demp.experiments.sweep.training import brief
from demp.files.results import FAILED, Result
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
        self, store: Store, jobs: Sequence[Job], queue: JobQueue, *, slots: int, say: Say, status: Say | None = None
    ) -> None:
        self.store, self.jobs, self.queue, self.running = store, jobs, queue, list[Job]()
        self.say, self.status = say, status
        self.time = timeleft.TimeLeft(slots, store.of(jobs).values())
        self._places: dict[str, int] = {}
        self._reported = time.monotonic()

    def _total(self) -> int:
        """Return the number of jobs, those that are still to be chosen among them."""
        return len(self.jobs) + (self.queue.source.left() if self.queue.source else 0)

    def title(self, job: Job) -> str:
        """Return its place among all jobs and its name."""
        if job.name not in self._places:
            self._places = {job.name: place for place, job in enumerate(self.jobs, 1)}
        return f"[{self._places[job.name]}/{self._total()}] {job.name}"

    def heading(self, job: Job) -> str:
        """Return the title with the time left for all jobs, where that is known."""
        left = self._left()
        return self.title(job) if left is None else f"{self.title(job)} ({timeleft.message(left)} for all)"

    def _left(self) -> float | None:
        waiting = [*self.queue.waiting, *[UNKNOWN] * (self.queue.remaining - len(self.queue.waiting))]
        return self.time.left(self.running, waiting)

    def begins(self, job: Job, *, quiet: bool = False) -> None:
        """Note that a job begins."""
        self.running.append(job)
        self.time.begins(job)
        if not quiet:
            self.say(f"{self.title(job)}: begins")

    def stops(self, job: Job) -> None:
        """Note that a job was interrupted."""
        self.running.remove(job)
        self.time.ends(job)

    def ends(self, job: Job, record: Result) -> None:
        """Note that a job is done or failed, and say so."""
        self.running.remove(job)
        self.time.ends(job, record)
        self.say(f"{self.title(job)}: {message(record)}")

    def summary(self) -> str:
        """Return one line on all jobs."""
        ended = self.store.of(self.jobs).values()
        failed = sum(record["status"] == FAILED for record in ended)
        parts = [f"{len(ended) - failed} of {self._total()} done"]
        parts += [f"{failed} failed"] if failed else []
        parts += [self._step(job) for job in self.running]
        return ", ".join([*parts, timeleft.message(self._left())])

    def _step(self, job: Job) -> str:
        going = self.time.going[job.name]
        return f"{job.name} at step {going.step} of {going.total}" if going.total else f"{job.name} is under way"

    def report(self) -> None:
        """Say the summary: once a second where a line is kept up to date, now and then elsewhere."""
        if time.monotonic() - self._reported >= (EVERY_SECONDS if self.status is None else 1.0):
            self._reported = time.monotonic()
            (self.status or self.say)(self.summary())


class StepObserver(Observer):
    """Passes the steps of a run in this process on to the progress of its sweep."""

    def __init__(self, progress: Progress, job: Job, *, aloud: bool) -> None:
        self.progress, self.job, self.aloud = progress, job, aloud

    def start(self, run: Run) -> None:
        """Pass on the step at which it begins."""
        self.progress.time.steps(self.job, run.step, run.total_steps)

    def step(self, run: Run, seconds: float) -> None:
        """Report the run's step to the progress of its sweep."""
        self.progress.time.steps(self.job, run.step, run.total_steps)
        if self.aloud:
            self.progress.report()


def message(record: Result) -> str:
    """Return one line on a job that has ended."""
    if record["status"] == FAILED:
        return f"failed: {record['error']}"
    return brief(record) if "eval/top1" in record else f"done in {record['seconds']:.0f} s"
