"""Carry out what is missing of many jobs: one after the other here, or in processes, each with one job at a time."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.records import FAILED, Record
from demp.sweep.agenda import Agenda
from demp.sweep.carrying import carry_out
from demp.sweep.claims import Claims
from demp.sweep.devices import device_of, places_on, refuse_elsewhere, threads_for
from demp.sweep.job import Job
from demp.sweep.pool import OTHERS_SECONDS, Hand, News, Pool
from demp.sweep.presence import Presence
from demp.sweep.progress import Progress, Say, Steps
from demp.sweep.store import Store
from demp.sweep.worker import Worker
from demp.train import Observer
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals

HERE, RAY = "here", "ray"
"""Where jobs run: on this machine, or on a Ray cluster."""

View = Callable[[str], Observer]
Take = Callable[[Job, Record], None]


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
        if minutes is not None and minutes <= 0:
            raise UsageError(f"budget-minutes is {minutes:g}; give a number above 0")
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
        on: str = HERE,
        minutes: float | None = None,
        view: View | None = None,
        say: Say = lambda text: None,
        status: Say | None = None,
    ) -> Outcome:
        """Do what is missing, at most ``jobs`` at once on each of the ``devices``, for at most so many minutes.

        One at a time without devices runs in this process, anything else in processes of their own, on a CPU with one
        thread each. ``view`` makes the observer of a job in this process from its title; ``say`` takes lines for
        people, ``status`` one line that is always up to date. What others who lead the same sweep do is waited for.
        ``on="ray"`` runs them on the workers of a Ray cluster: ``jobs`` at once, or as many as it has
        processors or GPUs.

        Raises:
            TrainingInterrupted: a signal; what was being done can be continued.
            UsageError: an essential job shows a mistake.
        """
        deadline, places = Deadline(minutes), places_on(devices, jobs)
        refuse_elsewhere(devices, self.missing)
        if on not in (HERE, RAY) or (on == RAY and devices):
            raise UsageError(f"on is {on!r}; give here, or ray without devices")
        if not self.missing and not self.left():
            return self.outcome()
        presence = Presence(self.store.leaders)
        try:
            agenda = Agenda(self.store, self.missing, presence, self)
            progress = Progress(self.store, self.jobs, agenda, slots=len(places), say=say, status=status)

            def take(job: Job, record: Record) -> None:
                self._take(job, record, agenda, progress, presence.name)

            if on == RAY:
                self._on_ray(jobs, agenda, progress, deadline, take, presence)
            elif len(places) == 1 and not devices:
                self._one_by_one(agenda, progress, deadline, view, take)
            else:
                Pool(agenda, progress, self._hire, places).work(deadline.passed, take)
        except TrainingInterrupted as stop:
            if not deadline.passed():
                found = self.outcome()
                whole = len(found.records) + found.left
                text = f"interrupted: {len(found.records)} of {whole} runs are done; the same command goes on"
                raise TrainingInterrupted(text, stop.exit_code) from None
        finally:
            presence.leave()
        return self.outcome()

    def outcome(self) -> Outcome:
        """What there is now."""
        ended = self.store.of(self.jobs)
        return Outcome(list(ended.values()), len(self.jobs) - len(ended) + self.left())

    def left(self) -> int:
        """Jobs that are still to be chosen: none here, all are known."""
        return 0

    def more(self) -> list[Job]:
        """The next that are chosen."""
        return []

    def on_gpu(self) -> bool:
        """Do the jobs need a GPU?"""
        return any(device_of(job).startswith("cuda") for job in self.jobs)

    def _hire(self, place: str, job: Job, news: News) -> Hand:
        return Worker(self.store, news, device=place, threads=threads_for(place, job))

    def _on_ray(
        self, jobs: int, agenda: Agenda, progress: Progress, deadline: Deadline, take: Take, presence: Presence
    ) -> None:
        from demp.sweep import on_ray

        def hire(place: str, job: Job, news: News) -> Hand:
            return on_ray.RayHand(ray, self.store, news, (presence.name, presence.token), job)

        with on_ray.cluster() as ray:
            places = on_ray.places(ray, jobs, self.on_gpu())
            progress.time.slots = len(places)
            Pool(agenda, progress, hire, places).work(deadline.passed, take)

    def _one_by_one(
        self, agenda: Agenda, progress: Progress, deadline: Deadline, view: View | None, take: Take
    ) -> None:
        with stop_signals() as stop:
            while agenda.ahead and not deadline.passed():
                if stop():
                    raise TrainingInterrupted("", 128 + stop())
                job = agenda.next()
                if job is None:
                    time.sleep(OTHERS_SECONDS)
                    progress.now()
                    continue
                progress.begins(job, quiet=view is not None)
                watchers = [deadline, Signalled(stop), Steps(progress, job, aloud=view is None)]
                watchers += [Kept(agenda.claims, job)] + ([] if view is None else [view(progress.heading(job))])
                try:
                    take(job, carry_out(job, self.store.folder(job), watchers))
                except TrainingInterrupted:
                    if agenda.claims.holds(job):
                        raise TrainingInterrupted("", 128 + (stop() or ASKED)) from None
                    progress.stops(job)
                    agenda.back(job)
                finally:
                    agenda.claims.release(job)

    def _take(self, job: Job, record: Record, agenda: Agenda, progress: Progress, leader: str) -> None:
        if record["status"] == FAILED and job.name in self.essential and record.get("mistake"):
            raise UsageError(f"the {job.labels.get('method', job.name)} run cannot be made: {record['error']}")
        self.store.add(record, leader)
        agenda.claims.release(job)
        progress.ends(job, record)


class Signalled(Observer):
    """Asks a run to stop that a signal came for; not every work looks at signals itself."""

    def __init__(self, stop: Callable[[], int]) -> None:
        self.stop = stop

    def asks_to_stop(self) -> bool:
        """Did one come?"""
        return bool(self.stop())


class Kept(Observer):
    """Asks a run to stop that another leader took over, because this one was silent for long."""

    def __init__(self, claims: Claims, job: Job) -> None:
        self.claims, self.job, self._looked = claims, job, time.monotonic()

    def asks_to_stop(self) -> bool:
        """Is it another's?"""
        if time.monotonic() - self._looked < OTHERS_SECONDS:
            return False
        self._looked = time.monotonic()
        return not self.claims.holds(self.job)


def refuse_twins(jobs: Sequence[Job]) -> None:
    """Two different jobs of one name."""
    first: dict[str, Job] = {}
    for job in jobs:
        if first.setdefault(job.name, job).identity != job.identity:
            raise UsageError(f"two different jobs are called {job.name!r}; give each a name of its own")
