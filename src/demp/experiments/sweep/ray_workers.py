"""Jobs on a Ray cluster: an existing one (``RAY_ADDRESS``), or one on this machine.

A worker that sees the folder of the sweep works in it, so that a run goes on where it was interrupted. Elsewhere it
works in a folder of its own that is deleted, and the line of results alone comes back.
"""

import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demp import files
from demp.errors import DempError
from demp.experiments.sweep.devices import device_of
from demp.experiments.sweep.execution import run_job
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.pool import Events
from demp.experiments.sweep.store import Store
from demp.train import Observer
from demp.train.extras import need
from demp.train.run import Run
from demp.train.stopping import TrainingInterrupted

EVENT_SECONDS = 0.5
"""Between two questions to a worker about its step."""
CONNECT_SECONDS = 10.0


@contextmanager
def cluster() -> Iterator[Any]:
    """Connect to Ray and return its module; a cluster that was begun here ends here.

    Raises:
        DempError: there is none, or it does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default
    ray = need("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    validate_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    except Exception as error:
        where = os.environ.get("RAY_ADDRESS", "a cluster on this machine")
        raise DempError(f"cannot use {where}: {str(error).splitlines()[0]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def validate_address(address: str) -> None:
    """Make sure that a cluster answers; Ray itself would wait for minutes.

    Raises:
        DempError: none does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise DempError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset it"
            ) from error


def places(ray: Any, jobs: int, gpu: bool) -> list[str]:
    """Return a place for each of ``jobs`` at once; for 1, for each GPU or processor of the cluster.

    Raises:
        DempError: jobs need a GPU, and the cluster has none.
    """
    there = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
    if gpu and not there:
        raise DempError("the Ray cluster has no GPU; add one, or train with --device cpu")
    return [""] * (jobs if jobs > 1 else max(1, there))


@contextmanager
def announced(store: Store) -> Iterator[str]:
    """Leave a token in the folder, by which a worker finds out that it sees the same folder; return the token."""
    token = uuid.uuid4().hex
    files.write(store.token_file, token)
    try:
        yield token
    finally:
        store.token_file.unlink(missing_ok=True)


class JobRunner:
    """The object inside a Ray worker: it does one job at a time, and answers meanwhile."""

    def __init__(self) -> None:
        self.at: tuple[int, int] | None = None
        self.stopping = False

    def run(self, job: dict[str, Any], path: str, token: str, threads: int) -> dict[str, Any]:
        """Do the job; return the last event, as in `demp.experiments.sweep.pool.Worker`."""
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.at = None
        one, store = Job.from_dict(job), Store(path)
        shared = store.token_file.is_file() and store.token_file.read_text() == token
        with tempfile.TemporaryDirectory(prefix="demp-") as own:
            folder = store.job_folder(one.name) if shared else Path(own) / one.name
            try:
                return {"record": run_job(one, folder, [StepRecorder(self)])}
            except TrainingInterrupted as stop:
                return {"died": f"ended with code {stop.exit_code}", "again": True}

    def progress(self) -> tuple[int, int] | None:
        """Return step and total; None for a job that counts no steps."""
        return self.at

    def stop(self) -> None:
        """Stop the job after a step."""
        self.stopping = True


class StepRecorder(Observer):
    """Notes how far a run is, for whoever asks the runner."""

    def __init__(self, runner: JobRunner) -> None:
        self.runner = runner

    def start(self, run: Run) -> None:
        """Note the step at which it begins."""
        self.runner.at = (run.step, run.total_steps)

    def step(self, run: Run, seconds: float) -> None:
        """Record the run's current step and its total number of steps."""
        self.runner.at = (run.step, run.total_steps)

    def asks_to_stop(self) -> bool:
        """Return whether the coordinator asked for it."""
        return self.runner.stopping


class RayWorker:
    """A handle on one Ray worker (`demp.experiments.sweep.pool.Worker`)."""

    def __init__(self, ray: Any, store: Store, events: Events, token: str, job: Job) -> None:
        self.job: Job | None = None
        self._ray, self._store, self._events, self._token = ray, store, events, token
        gpu = device_of(job).startswith("cuda")
        self._threads = 0 if gpu else 1
        own = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        options = {"num_cpus": 1, "num_gpus": int(gpu), "max_concurrency": 4, "runtime_env": {"env_vars": own}}
        self._runner = ray.remote(**options)(JobRunner).remote()
        self._listener: threading.Thread | None = None

    def begin(self, job: Job) -> None:
        """Start this job on the Ray worker and listen for its end."""
        self.job = job
        path = str(self._store.path.resolve())
        end = self._runner.run.remote(job.to_dict(), path, self._token, self._threads)
        self._listener = threading.Thread(target=self._listen, args=(end,), daemon=True)
        self._listener.start()

    def _listen(self, end: Any) -> None:
        ray, asked, last = self._ray, None, None
        try:
            while not ray.wait([end], timeout=EVENT_SECONDS)[0]:
                if asked is None:
                    asked = self._runner.progress.remote()
                elif ray.wait([asked], timeout=0)[0]:
                    at, asked = ray.get(asked), None
                    if at is not None and at != last:
                        last = at
                        self._events.put((self, {"step": at[0], "total": at[1]}))
            self._events.put((self, ray.get(end)))
        except Exception as error:
            how = f"was lost with its Ray worker ({type(error).__name__}: {str(error).splitlines()[0]})"
            self._events.put((self, {"died": how, "again": True}))

    def stop(self) -> None:
        """Ask the job to stop after a step; no further job follows."""
        if self.job is not None:
            self._runner.stop.remote()

    def kill(self) -> None:
        """End the worker at once, without a checkpoint."""
        self._ray.kill(self._runner)

    def join(self) -> None:
        """Wait for the end of its job, with its last event in the queue."""
        if self._listener is not None:
            self._listener.join()
        self.kill()
