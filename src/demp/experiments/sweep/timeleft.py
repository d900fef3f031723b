"""How long a sweep will still take, from what was measured and nothing else."""

import heapq
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demp.experiments.sweep.job import Job
from demp.files.results import DONE, Result

PACE_SHARE = 0.02
"""The pace of a job counts after this share of its work: a first step has caches to fill and a first look to take."""


@dataclass
class Going:
    """Where a job that is being done stands."""

    began: float
    """Seconds, of the clock."""
    first: int | None = None
    """The step at which this process took it up; None for work that counts no steps."""
    since: float = 0.0
    """When it did, start-up aside."""
    step: int = 0
    total: int = 0

    def left(self, now: float) -> float | None:
        """Return the seconds that its remaining steps take at its pace; None before that is known."""
        if self.first is None or self.step - self.first < max(1, PACE_SHARE * (self.total - self.first)):
            return None
        return (now - self.since) * (self.total - self.step) / (self.step - self.first)


class TimeLeft:
    """Durations of jobs that ended, and the pace of those that are being done.

    A waiting job takes as long as its like: the mean of those that differ in the seed alone, or else of all. What this
    process measured comes before what earlier ones did, perhaps elsewhere, or with more or fewer jobs at once.
    """

    def __init__(self, slots: int, earlier: Iterable[Result] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.slots, self.clock = slots, clock
        self.going: dict[str, Going] = {}
        self._earlier: dict[str, list[float]] = {}
        self._now: dict[str, list[float]] = {}
        for record in earlier:
            keep(self._earlier, record)

    def begins(self, job: Job) -> None:
        """Note that a job begins."""
        self.going[job.name] = Going(self.clock())

    def steps(self, job: Job, step: int, total: int) -> None:
        """Note the step that a job has reached."""
        going = self.going[job.name]
        if going.first is None:
            going.first, going.since = step, self.clock()
        going.step, going.total = step, total

    def ends(self, job: Job, record: Result | None = None) -> None:
        """Note that a job has ended, with its record, or was stopped."""
        self.going.pop(job.name, None)
        if record is not None:
            keep(self._now, record)

    def left(self, running: Sequence[Job], waiting: Sequence[Job]) -> float | None:
        """Return the seconds until all are done; None while nothing is known about some of them."""
        now, ends = self.clock(), []
        for job in running:
            left = self.going[job.name].left(now)
            if left is None and (whole := self._expected(job, running)) is not None:
                left = max(0.0, whole - (now - self.going[job.name].began))
            if left is None:
                return None
            ends.append(left)
        ends += [0.0] * (self.slots - len(ends))
        heapq.heapify(ends)
        for job in waiting:
            whole = self._expected(job, running)
            if whole is None:
                return None
            heapq.heappush(ends, heapq.heappop(ends) + whole)
        return max(ends, default=0.0)

    def _expected(self, job: Job, running: Sequence[Job]) -> float | None:
        """Return the seconds that a whole job takes, from its like, or None."""
        now = self.clock()
        for known in (self._now, self._earlier):
            if like(job.labels) in known:
                return statistics.fmean(known[like(job.labels)])
        paces = [(self.going[other.name], self.going[other.name].left(now)) for other in running]
        whole = [now - going.began + left for going, left in paces if left is not None and not going.first]
        measured = [seconds for each in self._now.values() for seconds in each] + whole
        measured = measured or [seconds for each in self._earlier.values() for seconds in each]
        return statistics.fmean(measured) if measured else None


def keep(known: dict[str, list[float]], record: Result) -> None:
    """Remember how long a job took, if it was done without interruption."""
    if record["status"] == DONE and not record.get("resumed"):
        known.setdefault(like(record["labels"]), []).append(record["seconds"])


def like(labels: Mapping[str, Any]) -> str:
    """Return a key that is equal for jobs that differ in the seed alone."""
    return json.dumps({name: value for name, value in labels.items() if name != "seed"}, sort_keys=True)


def message(seconds: float | None) -> str:
    """Return the time left in words, no more exact than an estimate is."""
    if seconds is None:
        return "time left unknown"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left" if seconds < 48 * 3600 else f"about {seconds / 86400:.1f} days left"
