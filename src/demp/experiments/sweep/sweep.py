"""Do what is missing of many jobs: one after the other here, or in processes, each with one job at a time."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.sweep.devices import device_of, places_on, threads_for, validate_devices
from demp.experiments.sweep.execution import lock_file, run_job
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.job_queue import JobQueue
from demp.experiments.sweep.pool import Events, Pool, Worker
from demp.experiments.sweep.progress import Progress, Say, StepObserver
from demp.experiments.sweep.store import Store
from demp.experiments.sweep.worker import ProcessWorker
from demp.files.results import FAILED, Result
from demp.train import Observer
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals

HERE, RAY = "here", "ray"
"""Where jobs run: on this machine, or on a Ray cluster."""

View = Callable[[str], Observer]
Keep = Callable[[Job, Result], None]


@dataclass(frozen=True)
class Outcome:
    """What there is when the process leaves a sweep."""

    records: list[Result]
    """Of every job that has ended, now or earlier, in the order of the jobs."""
    left: int
    """Jobs that have not."""


class Deadline(Observer):
    """Asks a run to stop when the time is up."""

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and minutes <= 0:
            raise UsageError(f"budget-minutes is {minutes:g}; give a number above 0")
        self.at = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def passed(self) -> bool:
        """Return whether the time is up."""
        return time.monotonic() >= self.at

    def asks_to_stop(self) -> bool:
        """Return whether the time is up, as a run asks it."""
        return self.passed()


class Sweep:
    """Jobs in one folder; what has ended is kept, what was interrupted goes on, equal jobs are done once.

    ``what`` and ``shared`` say what the folder is and what its jobs have in common; another folder is refused.
    ``essential`` names jobs without which the others are worth nothing: a mistake of the user's that shows in one ends
    the sweep. ``retry`` takes up again what failed.
    """

    def __init__(
        self,
        path: str | Path,
        jobs: Sequence[Job],
        *,
        what: str = "a sweep",
        shared: Mapping[str, Any] | None = None,
        essential: Collection[str] = (),
        retry: bool = False,
    ) -> None:
        validate_names(jobs)
        self.jobs, self.essential = list(jobs), set(essential)
        self.store = Store(path)
        self.store.begin(self.jobs, what=what, shared=shared)
        self.retry = retry
        self.missing = self.find_missing()

    def go(
        self,
        *,
        devices: Sequence[str] = (),
        jobs: int = 1,
        on: str = HERE,
        minutes: float | None = None,
        view: View | None = None,
        say: Say = lambda text: None,
        status: Say | None = None,
    ) -> Outcome:
        """Do what is missing, at most ``jobs`` at once on each of the ``devices``, for at most so many minutes.

        One at a time without devices runs in this process, anything else in processes of their own, on a CPU with one
        thread each. ``view`` makes the observer of a job in this process from its title; ``say`` takes lines for
        people, ``status`` one line that is always up to date.
        ``on="ray"`` runs them on the workers of a Ray cluster: ``jobs`` at once, or as many as it has
        processors or GPUs.

        Raises:
            TrainingInterrupted: a signal; what was being done can be continued.
            UsageError: an essential job shows a mistake, or another command runs jobs of this folder.
        """
        deadline, places = Deadline(minutes), places_on(devices, jobs)
        validate_devices(devices, self.missing)
        if on not in (HERE, RAY) or (on == RAY and devices):
            raise UsageError(f"on is {on!r}; give here, or ray without devices")
        if not self.missing and not self.left():
            return self.outcome()
        with self.store.locked():
            self.missing = self.find_missing()  # another command may have ended meanwhile
            queue = JobQueue(self.store, self.missing, self)
            progress = Progress(self.store, self.jobs, queue, slots=len(places), say=say, status=status)
            keep = partial(self._keep, progress)
            try:
                if on == RAY:
                    self._on_ray(jobs, queue, progress, deadline, keep)
                elif len(places) == 1 and not devices:
                    self._one_by_one(queue, progress, deadline, view, keep)
                else:
                    Pool(queue, progress, self._spawn, places).work(deadline.passed, keep)
            except TrainingInterrupted as stop:
                if not deadline.passed():
                    found = self.outcome()
                    total = len(found.records) + found.left
                    text = f"interrupted: {len(found.records)} of {total} runs are done; the same command goes on"
                    raise TrainingInterrupted(text, stop.exit_code) from None
        return self.outcome()

    def find_missing(self) -> list[Job]:
        """Return the jobs that have no result yet, one of each identity; with ``retry`` also those that failed."""
        ended = self.store.of(self.jobs)
        first = {job.identity: job for job in reversed(self.jobs)}
        return [
            job
            for job in self.jobs
            if first[job.identity] is job
            and (job.name not in ended or (self.retry and ended[job.name]["status"] == FAILED))
        ]

    def outcome(self) -> Outcome:
        """Return the results and failures that there are now."""
        ended = self.store.of(self.jobs)
        return Outcome(list(ended.values()), len(self.jobs) - len(ended) + self.left())

    def left(self) -> int:
        """Return the number of jobs that are still to be chosen: 0 here, all are known."""
        return 0

    def more(self) -> list[Job]:
        """Return the next jobs that are chosen: none here."""
        return []

    def on_gpu(self) -> bool:
        """Return whether any job needs a GPU."""
        return any(device_of(job).startswith("cuda") for job in self.jobs)

    def _spawn(self, place: str, job: Job, events: Events) -> Worker:
        return ProcessWorker(self.store, events, device=place, threads=threads_for(place, job))

    def _on_ray(self, jobs: int, queue: JobQueue, progress: Progress, deadline: Deadline, keep: Keep) -> None:
        from demp.experiments.sweep import ray_workers

        with ray_workers.cluster() as ray, ray_workers.announced(self.store) as token:

            def spawn(place: str, job: Job, events: Events) -> Worker:
                return ray_workers.RayWorker(ray, self.store, events, token, job)

            places = ray_workers.places(ray, jobs, self.on_gpu())
            progress.time.slots = len(places)
            Pool(queue, progress, spawn, places).work(deadline.passed, keep)

    def _one_by_one(
        self, queue: JobQueue, progress: Progress, deadline: Deadline, view: View | None, keep: Keep
    ) -> None:
        with stop_signals() as stop:
            while not deadline.passed():
                if stop():
                    raise TrainingInterrupted("", 128 + stop())
                if (job := queue.next()) is None:
                    return
                progress.begins(job, quiet=view is not None)
                observers = [deadline, StopOnSignal(stop), StepObserver(progress, job, aloud=view is None)]
                observers += [] if view is None else [view(progress.heading(job))]
                try:
                    keep(job, run_job(job, self.store.job_folder(job.name), observers))
                except TrainingInterrupted:
                    raise TrainingInterrupted("", 128 + (stop() or ASKED)) from None

    def _keep(self, progress: Progress, job: Job, record: Result) -> None:
        """Append the record of a job that has ended; a mistake in an essential one ends the sweep."""
        if record["status"] == FAILED and job.name in self.essential and record.get("mistake"):
            raise UsageError(f"the {job.labels.get('method', job.name)} run cannot be made: {record['error']}")
        self.store.add(record)
        lock_file(self.store.job_folder(job.name)).unlink(missing_ok=True)
        progress.ends(job, record)


class StopOnSignal(Observer):
    """Asks a run to stop that a signal came for; not every work looks at signals itself."""

    def __init__(self, stop: Callable[[], int]) -> None:
        self.stop = stop

    def asks_to_stop(self) -> bool:
        """Return whether a signal came."""
        return bool(self.stop())


def validate_names(jobs: Sequence[Job]) -> None:
    """Make sure that every name stands for one job.

    Raises:
        UsageError: two different jobs have one name.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        if first.setdefault(job.name, job).identity != job.identity:
            raise UsageError(f"two different jobs are called {job.name!r}; give each a name of its own")
