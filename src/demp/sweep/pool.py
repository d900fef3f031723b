"""Processes that do the jobs of an agenda, as many at once as there are places for them."""

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from demp.records import DONE, Record
from demp.sweep.agenda import Agenda
from demp.sweep.carrying import failure, line, now
from demp.sweep.job import Job
from demp.sweep.progress import Progress
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals

POLL_SECONDS = 0.2
OTHERS_SECONDS = 2.0
"""Between two looks at what others have."""
BEGUN_AGAIN = 1
"""How often a job whose process was ended by a signal is begun again before that is its result."""

News = queue.Queue[tuple[Any, dict[str, Any]]]


class Hand(Protocol):
    """What does one job at a time, elsewhere.

    It puts (itself, event) into the queue that it was made with; an event is a dict with ``step`` and ``total``, or
    ``record``, or ``died`` (how) and ``again`` (is it worth another try).
    """

    job: Job | None

    def begin(self, job: Job) -> None:
        """Take up a job."""
        ...

    def stop(self) -> None:
        """Stop the job after a step."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...

    def gone(self) -> None:
        """Wait for its end, with its last news in the queue."""
        ...


class Pool:
    """Hands that share an agenda."""

    def __init__(
        self, agenda: Agenda, progress: Progress, hire: Callable[[str, Job, News], Hand], places: Sequence[str]
    ) -> None:
        self.agenda, self.progress, self.hire = agenda, progress, hire
        self.free, self.hands, self.news = list(places), dict[Hand, str](), News()
        self.died: dict[str, int] = {}
        self._others_at = 0.0

    def work(self, passed: Callable[[], bool], take: Callable[[Job, Record], None]) -> None:
        """Until the agenda is done; ``take`` keeps a record.

        Raises:
            TrainingInterrupted: a signal, or ``passed`` says that the time is up.
        """
        with stop_signals() as stop:
            try:
                while self.agenda.ahead or self.progress.running:
                    if stop() or passed():
                        raise TrainingInterrupted("", 128 + (stop() or ASKED))
                    self._hand_out()
                    self._listen(take)
                    self.progress.now()
            finally:
                self._part(take)

    def _hand_out(self) -> None:
        """Jobs to idle hands, and new hands where there is room."""
        idle = [hand for hand in self.hands if hand.job is None]
        while (idle or self.free) and self.agenda.ahead and time.monotonic() >= self._others_at:
            job = self.agenda.next()
            if job is None:  # all that is left is in others' hands
                self._others_at = time.monotonic() + OTHERS_SECONDS
                return
            if not idle:
                place = self.free.pop(0)
                idle = [self.hire(place, job, self.news)]
                self.hands[idle[0]] = place
            idle.pop(0).begin(job)
            self.progress.begins(job)

    def _listen(self, take: Callable[[Job, Record], None]) -> None:
        """All news that there is."""
        wait = POLL_SECONDS
        while True:
            try:
                hand, event = self.news.get(timeout=wait)
            except queue.Empty:
                return
            wait = 0.0001
            self._hear(hand, event, take)
            if "died" in event:
                self.free.append(self.hands.pop(hand))
                hand.gone()

    def _hear(self, hand: Hand, event: dict[str, Any], take: Callable[[Job, Record], None]) -> None:
        job = hand.job
        if job is None:
            return
        if "step" in event:
            self.progress.time.steps(job, event["step"], event["total"])
            if not self.agenda.claims.holds(job):  # another took it for abandoned
                hand.kill()
            return
        hand.job = None
        if "record" in event:
            take(job, event["record"])
        elif not self.agenda.claims.holds(job):
            self.progress.stops(job)
            self.agenda.back(job)
        elif event["again"] and self.died.get(job.name, 0) < BEGUN_AGAIN:
            self.died[job.name] = self.died.get(job.name, 0) + 1
            self.progress.stops(job)
            self.progress.say(f"{self.progress.title(job)}: its process {event['died']}; it is begun again")
            self.agenda.back(job)
        else:
            log = self.agenda.store.log(job)
            words = f"; {log} has what it said" if log.is_file() else ""
            take(job, line(job, failure(f"its process {event['died']}{words}"), began=now(), seconds=0.0))

    def _part(self, take: Callable[[Job, Record], None]) -> None:
        """Stop all; what reached its end before it heard is kept, what did not is left to anyone."""
        try:
            for hand in self.hands:
                hand.stop()
            for hand in self.hands:
                hand.gone()
        except BaseException:
            for hand in self.hands:
                hand.kill()
            raise
        while not self.news.empty():
            hand, event = self.news.get()
            if event.get("record", {}).get("status") == DONE:
                self._hear(hand, event, take)
        for job in list(self.progress.running):
            self.progress.stops(job)
            self.agenda.claims.release(job)
