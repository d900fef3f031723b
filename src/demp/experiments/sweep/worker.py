"""A process that does jobs one after another, and the handle that its coordinator has on it.

It is ``python -m demp.experiments.sweep``: jobs come as JSON lines on stdin, events go out as JSON lines.
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

from demp.experiments.sweep.devices import environment_of
from demp.experiments.sweep.execution import run_job
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.pool import Events
from demp.experiments.sweep.store import Store
from demp.train import Observer
from demp.train.run import Run
from demp.train.stopping import ASKED, TrainingInterrupted

EVENT_SECONDS = 0.5
"""Between two events on the steps of a job."""
ORPHAN_SECONDS = 60.0
"""That a process may take to end after its coordinator did."""


class ProcessWorker:
    """One such process (`demp.experiments.sweep.pool.Worker`). Signals of a terminal do not reach it."""

    def __init__(self, store: Store, events: Events, *, device: str = "", threads: int = 0) -> None:
        self.job: Job | None = None
        self.store = store
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demp.experiments.sweep", str(threads), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment_of(device, threads),
            text=True,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._listener.start()

    def _listen(self, events: Events) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            events.put((self, json.loads(line)))
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        events.put((self, {"died": how, "again": code < 0 or code == 128 + ASKED}))

    def begin(self, job: Job) -> None:
        """Send this job to the worker process as a line of JSON."""
        assert self._process.stdin is not None
        self.job = job
        asked = {
            "job": job.to_dict(),
            "folder": str(self.store.job_folder(job.name)),
            "log": str(self.store.job_log(job.name)),
        }
        with suppress(BrokenPipeError):  # it died: its last event says so
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Ask the job to stop after a step; no further job follows."""
        if self.job is not None and self._process.poll() is None:
            self._process.terminate()
        self._close_input()

    def _close_input(self) -> None:
        """Tell the process that no further job follows, so that it ends."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End the process at once, without a checkpoint."""
        self._process.kill()

    def join(self) -> None:
        """Wait until the process has ended, with its last event in the queue."""
        self._close_input()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class StepReporter(Observer):
    """Sends how far a training is; stops it when the coordinator has ended."""

    def __init__(self, send: Callable[[dict[str, Any]], None], parent: int) -> None:
        self.send, self.last, self.parent = send, 0.0, parent

    def start(self, run: Run) -> None:
        """Send the step at which it begins."""
        self.send({"step": run.step, "total": run.total_steps})

    def step(self, run: Run, seconds: float) -> None:
        """Send the step, at most so often."""
        at = time.monotonic()
        if at - self.last >= EVENT_SECONDS:
            self.last = at
            self.send({"step": run.step, "total": run.total_steps})

    def asks_to_stop(self) -> bool:
        """Return whether the coordinator has ended, which gives this process another parent."""
        return os.getppid() != self.parent


def exit_when_orphaned(parent: int) -> None:
    """Start a thread that ends this process some time after its coordinator: other work than training asks nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVENT_SECONDS)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def output_into(log: Path) -> Iterator[None]:
    """Send what Python and libraries print to a file, which stays only if the process dies meanwhile."""
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
    """Do jobs until stdin ends, or ``parent``: it may die at any moment, also while torch is imported here."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if threads:
        torch.set_num_threads(threads)
    exit_when_orphaned(parent)

    def send(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=out, flush=True)

    for line in sys.stdin:
        if os.getppid() != parent:  # nobody waits for the result; the next coordinator has the job done
            return 128 + ASKED
        asked = json.loads(line)
        try:
            with output_into(Path(asked["log"])):
                record = run_job(Job.from_dict(asked["job"]), Path(asked["folder"]), [StepReporter(send, parent)])
            send({"record": record})
        except TrainingInterrupted as stop:
            return stop.exit_code
    return 0
