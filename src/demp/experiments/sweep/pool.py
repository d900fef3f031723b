"""Workers that do the jobs of a queue, as many at once as there are places for them."""

import queue
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from demp.experiments.sweep.execution import failure, line, now
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.job_queue import JobQueue
from demp.experiments.sweep.progress import Progress
from demp.files.results import DONE, Result
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals

POLL_SECONDS = 0.2
RETRIES = 1
"""How often a job whose process was ended by a signal is begun again before that is its result."""

Events = queue.Queue[tuple[Any, dict[str, Any]]]


class Worker(Protocol):
    """What does one job at a time, elsewhere.

    It puts (itself, event) into the queue that it was made with; an event is a dict with ``step`` and ``total``, or
    ``record``, or ``died`` (how) and ``again`` (is it worth another try).
    """

    job: Job | None

    def begin(self, job: Job) -> None:
        """Start this job and return without waiting for its end."""
        ...

    def stop(self) -> None:
        """Ask the job to stop after a step; no further job follows."""
        ...

    def kill(self) -> None:
        """End the worker at once, without a checkpoint."""
        ...

    def join(self) -> None:
        """Wait until the worker has ended, with its last event in the queue."""
        ...


class Pool:
    """Workers that share a queue of jobs."""

    def __init__(
        self, jobs: JobQueue, progress: Progress, spawn: Callable[[str, Job, Events], Worker], places: Sequence[str]
    ) -> None:
        self.jobs, self.progress, self.spawn = jobs, progress, spawn
        self.free, self.workers, self.events = list(places), dict[Worker, str](), Events()
        self.deaths: dict[str, int] = {}

    def work(self, passed: Callable[[], bool], keep: Callable[[Job, Result], None]) -> None:
        """Do all jobs of the queue; ``keep`` stores a record.

        Raises:
            TrainingInterrupted: a signal, or ``passed`` says that the time is up.
        """
        with stop_signals() as stop:
            try:
                while self.jobs.remaining or self.progress.running:
                    if stop() or passed():
                        raise TrainingInterrupted("", 128 + (stop() or ASKED))
                    self._hand_out()
                    self._receive(keep)
                    self.progress.report()
            finally:
                self._stop_all(keep)

    def _hand_out(self) -> None:
        """Give jobs to idle workers, and to new ones where there is room."""
        idle = [worker for worker in self.workers if worker.job is None]
        while (idle or self.free) and (job := self.jobs.next()):
            if not idle:
                place = self.free.pop(0)
                idle = [self.spawn(place, job, self.events)]
                self.workers[idle[0]] = place
            idle.pop(0).begin(job)
            self.progress.begins(job)

    def _receive(self, keep: Callable[[Job, Result], None]) -> None:
        """Take all events that there are, after a short wait for the first."""
        wait = POLL_SECONDS
        while True:
            try:
                worker, event = self.events.get(timeout=wait)
            except queue.Empty:
                return
            wait = 0.0001
            self._handle(worker, event, keep)
            if "died" in event:
                self.free.append(self.workers.pop(worker))
                worker.join()

    def _handle(self, worker: Worker, event: dict[str, Any], keep: Callable[[Job, Result], None]) -> None:
        job = worker.job
        if job is None:
            return
        if "step" in event:
            self.progress.time.steps(job, event["step"], event["total"])
            return
        worker.job = None
        if "record" in event:
            keep(job, event["record"])
        elif event["again"] and self.deaths.get(job.name, 0) < RETRIES:
            self.deaths[job.name] = self.deaths.get(job.name, 0) + 1
            self.progress.stops(job)
            self.progress.say(f"{self.progress.title(job)}: its process {event['died']}; it is begun again")
            self.jobs.put_back(job)
        else:
            log = self.jobs.store.job_log(job.name)
            output = f"; {log} has what it said" if log.is_file() else ""
            keep(job, line(job, failure(f"its process {event['died']}{output}"), began=now(), seconds=0.0))

    def _stop_all(self, keep: Callable[[Job, Result], None]) -> None:
        """Stop every worker; the results of jobs that reached their end meanwhile are kept."""
        try:
            for worker in self.workers:
                worker.stop()
            for worker in self.workers:
                worker.join()
        except BaseException:
            for worker in self.workers:
                worker.kill()
            raise
        while not self.events.empty():
            worker, event = self.events.get()
            if event.get("record", {}).get("status") == DONE:
                self._handle(worker, event, keep)
        for job in list(self.progress.running):
            self.progress.stops(job)
