"""A process that carries out jobs one after another, and the handle that its coordinator has on it.

It is ``python -m demp.sweep``: jobs come as JSON lines on stdin, news go out as JSON lines.
"""

import json
import os
import queue
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
from demp.sweep.job import Job
from demp.train import Observer
from demp.train.run import Run
from demp.train.stopping import TrainingInterrupted

NEWS_SECONDS = 0.5
"""Between two words on the steps of a job."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """One such process. Signals of a terminal do not reach it.

    What it says arrives in ``news`` as (worker, event); an event is a dict with ``step`` and ``total``, or ``record``,
    or ``stopped``, or ``died`` (how).
    """

    def __init__(self, news: "queue.Queue[tuple[Any, dict[str, Any]]]", *, device: str = "", threads: int = 0) -> None:
        self.job: Job | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demp.sweep", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=surroundings(device, threads),
            text=True,
            start_new_session=True,
        )
        self._ear = threading.Thread(target=self._listen, args=(news,), daemon=True)
        self._ear.start()

    def _listen(self, news: "queue.Queue[tuple[Any, dict[str, Any]]]") -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news.put((self, json.loads(line)))
        code = self._process.wait()
        news.put((self, {"died": f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"}))

    def begin(self, job: Job, folder: Path, log: Path) -> None:
        """Take up a job."""
        assert self._process.stdin is not None
        self.job = job
        asked = {"job": job.to_dict(), "folder": str(folder), "log": str(log)}
        with suppress(BrokenPipeError):  # it died: its last news says so
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Ask it to stop its job after a step, and to leave."""
        if self.job is not None and self._process.poll() is None:
            self._process.terminate()
        self.dismiss()

    def dismiss(self) -> None:
        """There is no more for it to do."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def gone(self) -> None:
        """Wait for its end."""
        self.dismiss()
        self._ear.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def surroundings(device: str, threads: int) -> dict[str, str]:
    """The environment of a worker: it sees one device, the one that it is for."""
    found = dict(os.environ) | ({name: str(threads) for name in THREADS} if threads else {})
    kind, _, index = device.partition(":")
    if kind == "cuda" and index:
        seen = found.get("CUDA_VISIBLE_DEVICES", "")
        found["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(index)] if seen else index
    return found


class Beacon(Observer):
    """Says how far a training is; stops it when the coordinator is gone."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self.say, self.last, self.parent = say, 0.0, os.getppid()

    def start(self, run: Run) -> None:
        """Where it begins."""
        self.say({"step": run.step, "total": run.total_steps})

    def step(self, run: Run, seconds: float) -> None:
        """Where it is, now and then."""
        now = time.monotonic()
        if now - self.last >= NEWS_SECONDS:
            self.last = now
            self.say({"step": run.step, "total": run.total_steps})

    def asks_to_stop(self) -> bool:
        """Is the parent another one?"""
        return os.getppid() != self.parent


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


def main(threads: int) -> int:
    """Carry out jobs until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if threads:
        torch.set_num_threads(threads)

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=out, flush=True)

    for line in sys.stdin:
        asked = json.loads(line)
        try:
            with spoken_into(Path(asked["log"])):
                record = carry_out(Job.from_dict(asked["job"]), Path(asked["folder"]), [Beacon(say)])
            say({"record": record})
        except TrainingInterrupted as stop:
            say({"stopped": stop.exit_code})
            return stop.exit_code
    return 0
