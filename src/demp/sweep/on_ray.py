"""Jobs on a Ray cluster: an existing one (``RAY_ADDRESS``), or one on this machine.

A worker that sees the folder of the sweep works in it, so that a run goes on where it was interrupted. Elsewhere it
works in a folder of its own that is deleted, and the line of results alone comes back.
"""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demp.errors import DempError
from demp.sweep.carrying import carry_out
from demp.sweep.devices import device_of
from demp.sweep.job import Job
from demp.sweep.pool import News
from demp.sweep.presence import token_in
from demp.sweep.store import Store
from demp.train import Observer
from demp.train.extras import need
from demp.train.run import Run
from demp.train.stopping import TrainingInterrupted

NEWS_SECONDS = 0.5
ANSWER_SECONDS = 10.0


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray, connected; a cluster that was begun here ends here.

    Raises:
        DempError: there is none, or it does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default
    ray = need("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    refuse_silent(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    except Exception as error:
        where = os.environ.get("RAY_ADDRESS", "a cluster on this machine")
        raise DempError(f"cannot use {where}: {str(error).splitlines()[0]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def refuse_silent(address: str) -> None:
    """Ray itself would wait for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            raise DempError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset it"
            ) from error


def places(ray: Any, jobs: int, gpu: bool) -> list[str]:
    """A place for each of ``jobs`` at once; for 1, for each GPU or processor of the cluster."""
    there = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
    if gpu and not there:
        raise DempError("the Ray cluster has no GPU; add one, or train with --device cpu")
    return [""] * (jobs if jobs > 1 else max(1, there))


class Hands:
    """What is in a Ray worker: it does one job at a time, and answers meanwhile."""

    def __init__(self) -> None:
        self.at: tuple[int, int] | None = None
        self.stopping = False

    def carry(self, job: dict[str, Any], path: str, leader: str, token: str, threads: int) -> dict[str, Any]:
        """Do the job; an event as in `demp.sweep.pool.Hand`."""
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.at = None
        one, store = Job.from_dict(job), Store(path)
        file = store.leaders / f"{leader}.json"
        shared = file.is_file() and token_in(file) == token
        with tempfile.TemporaryDirectory(prefix="demp-") as own:
            folder = store.folder(one) if shared else Path(own) / one.name
            try:
                return {"record": carry_out(one, folder, [Telling(self)])}
            except TrainingInterrupted as stop:
                return {"died": f"ended with code {stop.exit_code}", "again": True}

    def news(self) -> tuple[int, int] | None:
        """Step and total, if it counts steps."""
        return self.at

    def stop(self) -> None:
        """Stop after a step."""
        self.stopping = True


class Telling(Observer):
    """How far a run is, for whoever asks."""

    def __init__(self, hands: Hands) -> None:
        self.hands = hands

    def start(self, run: Run) -> None:
        """Where it begins."""
        self.hands.at = (run.step, run.total_steps)

    def step(self, run: Run, seconds: float) -> None:
        """One more."""
        self.hands.at = (run.step, run.total_steps)

    def asks_to_stop(self) -> bool:
        """Was it told to?"""
        return self.hands.stopping


class RayHand:
    """A handle on one Ray worker (`demp.sweep.pool.Hand`)."""

    def __init__(self, ray: Any, store: Store, news: News, leader: tuple[str, str], job: Job) -> None:
        self.job: Job | None = None
        self._ray, self._store, self._news, self._leader = ray, store, news, leader
        gpu = device_of(job).startswith("cuda")
        self._threads = 0 if gpu else 1
        own = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        options = {"num_cpus": 1, "num_gpus": int(gpu), "max_concurrency": 4, "runtime_env": {"env_vars": own}}
        self._hands = ray.remote(**options)(Hands).remote()
        self._ear: threading.Thread | None = None

    def begin(self, job: Job) -> None:
        """Take up a job."""
        self.job = job
        path = str(self._store.path.resolve())
        end = self._hands.carry.remote(job.to_dict(), path, *self._leader, self._threads)
        self._ear = threading.Thread(target=self._listen, args=(end,), daemon=True)
        self._ear.start()

    def _listen(self, end: Any) -> None:
        ray, asked, last = self._ray, None, None
        try:
            while not ray.wait([end], timeout=NEWS_SECONDS)[0]:
                if asked is None:
                    asked = self._hands.news.remote()
                elif ray.wait([asked], timeout=0)[0]:
                    at, asked = ray.get(asked), None
                    if at is not None and at != last:
                        last = at
                        self._news.put((self, {"step": at[0], "total": at[1]}))
            self._news.put((self, ray.get(end)))
        except Exception as error:
            how = f"was lost with its Ray worker ({type(error).__name__}: {str(error).splitlines()[0]})"
            self._news.put((self, {"died": how, "again": True}))

    def stop(self) -> None:
        """Stop its job after a step."""
        if self.job is not None:
            self._hands.stop.remote()

    def kill(self) -> None:
        """End it now."""
        self._ray.kill(self._hands)

    def gone(self) -> None:
        """Wait for the end of its job, with its last news in the queue."""
        if self._ear is not None:
            self._ear.join()
        self.kill()
