"""A process that carries out jobs one after another, and the handle that its coordinator has on it.

It is ``python -m demp.sweep``: jobs come as JSON lines on stdin, news go out as JSON lines.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from demp.sweep.carrying import carry_out
from demp.sweep.devices import surroundings
from demp.sweep.job import Job
from demp.sweep.pool import News
from demp.sweep.store import Store
from demp.train import Observer
from demp.train.run import Run
from demp.train.stopping import ASKED, TrainingInterrupted

NEWS_SECONDS = 0.5
"""Between two words on the steps of a job."""
ORPHAN_SECONDS = 60.0
"""That a process may take to end after its coordinator did."""


class Worker:
    """One such process (`demp.sweep.pool.Hand`). Signals of a terminal do not reach it."""

    def __init__(self, store: Store, news: News, *, device: str = "", threads: int = 0) -> None:
        self.job: Job | None = None
        self.store = store
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demp.sweep", str(threads), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=surroundings(device, threads),
            text=True,
            start_new_session=True,
        )
        self._ear = threading.Thread(target=self._listen, args=(news,), daemon=True)
        self._ear.start()

    def _listen(self, news: News) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news.put((self, json.loads(line)))
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        news.put((self, {"died": how, "again": code < 0 or code == 128 + ASKED}))

    def begin(self, job: Job) -> None:
        """Take up a job."""
        assert self._process.stdin is not None
        self.job = job
        asked = {"job": job.to_dict(), "folder": str(self.store.folder(job)), "log": str(self.store.log(job))}
        with suppress(BrokenPipeError):  # it died: its last news says so
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Stop its job after a step, and leave."""
        if self.job is not None and self._process.poll() is None:
            self._process.terminate()
        self._dismiss()

    def _dismiss(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def gone(self) -> None:
        """Wait for its end, with its last news in the queue."""
        self._dismiss()
        self._ear.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Beacon(Observer):
    """Says how far a training is; stops it when the coordinator is gone."""

    def __init__(self, say: Callable[[dict[str, Any]], None], parent: int) -> None:
        self.say, self.last, self.parent = say, 0.0, parent

    def start(self, run: Run) -> None:
        """Where it begins."""
        self.say({"step": run.step, "total": run.total_steps})

    def step(self, run: Run, seconds: float) -> None:
        """Where it is, now and then."""
        at = time.monotonic()
        if at - self.last >= NEWS_SECONDS:
            self.last = at
            self.say({"step": run.step, "total": run.total_steps})

    def asks_to_stop(self) -> bool:
        """Is the parent another one?"""
        return os.getppid() != self.parent


def leave_when_orphaned(parent: int) -> None:
    """A thread that ends this process some time after its coordinator: other work than training asks nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(NEWS_SECONDS)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def spoken_into(log: Path) -> Iterator[None]:
    """What Python and libraries print goes to a file, which stays only if the process dies meanwhile."""
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        log.unlink(missing_ok=True)


def main(threads: int, parent: int) -> int:
    """Carry out jobs until stdin ends, or ``parent``: it may die at any moment, also while torch is imported here."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if threads:
        torch.set_num_threads(threads)
    leave_when_orphaned(parent)

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=out, flush=True)

    for line in sys.stdin:
        if os.getppid() != parent:  # nobody waits for the result; the next leader has the job done
            return 128 + ASKED
        asked = json.loads(line)
        try:
            with spoken_into(Path(asked["log"])):
                record = carry_out(Job.from_dict(asked["job"]), Path(asked["folder"]), [Beacon(say, parent)])
            say({"record": record})
        except TrainingInterrupted as stop:
            return stop.exit_code
    return 0
