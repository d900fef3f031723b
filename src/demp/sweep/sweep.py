"""Carry out what is missing of many jobs: one after the other here, or in processes, one job each at a time."""

import queue
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.records import DONE, FAILED, Record
from demp.sweep.carrying import carry_out, failure, line
from demp.sweep.job import Job
from demp.sweep.store import Store
from demp.sweep.training import brief
from demp.sweep.worker import Worker
from demp.train import Observer
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals

POLL_SECONDS = 0.2

View = Callable[[str], Observer]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What there is when the process leaves a sweep."""

    records: list[Record]
    """Of every job that has ended, now or earlier, in the order of the jobs."""
    left: int
    """Jobs that have not."""


class Deadline(Observer):
    """Asks a run to stop when the time is up."""

    def __init__(self, minutes: float | None) -> None:
        self.at = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def passed(self) -> bool:
        """Is the time up?"""
        return time.monotonic() >= self.at

    def asks_to_stop(self) -> bool:
        """The same, as a run asks it."""
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
        refuse_twins(jobs)
        self.jobs, self.essential = list(jobs), set(essential)
        self.store = Store(path)
        self.store.begin(self.jobs, what=what, shared=shared)
        ended = self.store.of(self.jobs)
        first = {job.identity: job for job in reversed(self.jobs)}
        self.missing = [
            job
            for job in self.jobs
            if first[job.identity] is job and (job.name not in ended or (retry and ended[job.name]["status"] == FAILED))
        ]

    def go(
        self,
        *,
        devices: Sequence[str] = (),
        jobs: int = 1,
        minutes: float | None = None,
        view: View | None = None,
        say: Say = lambda text: None,
    ) -> Outcome:
        """Do what is missing, at most ``jobs`` at once on each of the ``devices``, for at most so many minutes.

        One at a time without devices runs in this process, anything else in processes of their own, on a CPU with one
        thread each. ``view`` makes the observer of a job in this process from its title; ``say`` takes lines for
        people.

        Raises:
            TrainingInterrupted: a signal; what was being done can be continued.
            UsageError: an essential job shows a mistake.
        """
        if jobs < 1:
            raise UsageError(f"jobs is {jobs}; give at least 1")
        if minutes is not None and minutes <= 0:
            raise UsageError(f"budget-minutes is {minutes:g}; give a number above 0")
        deadline = Deadline(minutes)
        try:
            if jobs == 1 and not devices:
                self._one_by_one(deadline, view, say)
            else:
                self._at_once([device for device in devices or [""] for _ in range(jobs)], deadline, say)
        except TrainingInterrupted as stop:
            if not deadline.passed():
                done = len(self.jobs) - self.outcome().left
                text = f"interrupted: {done} of {len(self.jobs)} runs are done; the same command goes on"
                raise TrainingInterrupted(text, stop.exit_code) from None
        return self.outcome()

    def outcome(self) -> Outcome:
        """What there is now."""
        ended = self.store.of(self.jobs)
        return Outcome(list(ended.values()), len(self.jobs) - len(ended))

    def _title(self, job: Job) -> str:
        return f"[{self.jobs.index(job) + 1}/{len(self.jobs)}] {job.name}"

    def _one_by_one(self, deadline: Deadline, view: View | None, say: Say) -> None:
        for job in self.missing:
            if deadline.passed():
                return
            watchers = [deadline] if view is None else [deadline, view(self._title(job))]
            if view is None:
                say(f"{self._title(job)}: begins")
            self.store.note(job)
            self._take(job, carry_out(job, self.store.folder(job), watchers), say)

    def _at_once(self, slots: Sequence[str], deadline: Deadline, say: Say) -> None:
        news: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        waiting, free, workers = list(self.missing), list(slots), dict[Worker, str]()
        with stop_signals() as stop:
            try:
                while waiting or any(worker.job for worker in workers):
                    if stop() or deadline.passed():
                        raise TrainingInterrupted("", 128 + (stop() or ASKED))
                    self._hand_out(waiting, free, workers, news, say)
                    try:
                        worker, event = news.get(timeout=POLL_SECONDS)
                    except queue.Empty:
                        continue
                    self._hear(worker, event, say)
                    if "died" in event:
                        free.append(workers.pop(worker))
                        worker.gone()
            finally:
                for worker in workers:
                    worker.stop()
                for worker in workers:
                    worker.gone()
                while not news.empty():  # one may have reached its end before it heard
                    worker, event = news.get()
                    if event.get("record", {}).get("status") == DONE:
                        self._hear(worker, event, say)

    def _hand_out(
        self, waiting: list[Job], free: list[str], workers: dict[Worker, str], news: queue.Queue[Any], say: Say
    ) -> None:
        """Jobs to idle workers, and new workers where there is room."""
        idle = [worker for worker in workers if worker.job is None]
        while waiting and (idle or free):
            if not idle:
                device = free.pop(0)
                idle = [Worker(news, device=device, threads=1 if self._on_cpu(waiting[0], device) else 0)]
                workers[idle[0]] = device
            job = waiting.pop(0)
            self.store.note(job)
            idle.pop(0).begin(job, self.store.folder(job), self.store.log(job))
            say(f"{self._title(job)}: begins")

    def _on_cpu(self, job: Job, device: str) -> bool:
        return (device or job.arguments.get("config", {}).get("device", "cpu")).startswith("cpu")

    def _hear(self, worker: Worker, event: dict[str, Any], say: Say) -> None:
        """What a worker says of its job."""
        job = worker.job
        if job is None:
            return
        if "record" in event:
            worker.job = None
            self._take(job, event["record"], say)
        elif "died" in event:
            worker.job = None
            error = f"its process {event['died']}; {self.store.log(job)} has what it said"
            began = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._take(job, line(job, failure(error), began=began, seconds=0.0), say)

    def _take(self, job: Job, record: Record, say: Say) -> None:
        if record["status"] == FAILED and job.name in self.essential and record.get("mistake"):
            raise UsageError(f"the {job.labels.get('method', job.name)} run cannot be made: {record['error']}")
        self.store.add(record)
        say(f"{self._title(job)}: {told(record)}")


def told(record: Record) -> str:
    """One job that has ended, in a line."""
    if record["status"] == FAILED:
        return f"failed: {record['error']}"
    return brief(record) if "eval/top1" in record else f"done in {record['seconds']:.0f} s"


def refuse_twins(jobs: Sequence[Job]) -> None:
    """Two different jobs of one name."""
    first: dict[str, Job] = {}
    for job in jobs:
        if first.setdefault(job.name, job).identity != job.identity:
            raise UsageError(f"two different jobs are called {job.name!r}; give each a name of its own")
