"""One job done in this process: its result, or why there is none, as a line of results."""

import gc
import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout

import demp
from demp.errors import DempError, UsageError
from demp.experiments.sweep.job import Job, function
from demp.files import run
from demp.files.results import DONE, FAILED, SCHEMA, Result
from demp.train import Observer
from demp.train.runfolder import device_name
from demp.train.stopping import ASKED, TrainingInterrupted

WORTH_SECONDS = 5.0
LOCK_SECONDS = 0.1
"""Between two questions to the observers while another process holds the job."""


def run_job(job: Job, folder: Path, observers: Sequence[Observer] = ()) -> Result:
    """Call the job's function and return its line of results; the line of a job that fails says why.

    Raises:
        TrainingInterrupted: it was asked to stop, and can be continued.
    """
    with exclusive(lock_file(folder), observers):
        began, start, resumed = now(), time.perf_counter(), folder.exists()
        try:
            result = function(job.work)(job.arguments, folder, observers)
            record = {"machine": machine(), "torch": str(torch.__version__), **result, "status": DONE}
            json.dumps(record)
        except Exception as error:
            record = failure(error)
        finally:
            free_memory(time.perf_counter() - start)
        return line(job, record, began=began, seconds=time.perf_counter() - start, resumed=resumed)


def lock_file(folder: Path) -> Path:
    """Return the file whose lock the process holds that works in a job's folder; deleted when the job has ended."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def exclusive(file: Path, observers: Sequence[Observer] = ()) -> Iterator[None]:
    """Hold the lock of a file, after any other process that has it: one whose coordinator died ends soon.

    Raises:
        TrainingInterrupted: an observer asked to stop meanwhile.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            if any(observer.asks_to_stop() for observer in observers):
                raise TrainingInterrupted("stopped before it began", 128 + ASKED) from None
    try:
        yield
    finally:
        lock.release()


def free_memory(seconds: float) -> None:
    """Free what a job of so many seconds left; that takes tenths of a second, which a short job's rest is not worth."""
    if seconds >= WORTH_SECONDS or torch.cuda.is_initialized():
        gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def now() -> str:
    """Return the time as a line of results has it: UTC, in ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def line(job: Job, record: Result, *, began: str, seconds: float, resumed: bool = False) -> Result:
    """Return a line of results: the job, what came of it, and when."""
    about = job.about()
    of_job = {name: about.pop(name) for name in ("name", "identity", "labels")}
    when = {"demp": demp.__version__, "began": began, "seconds": seconds, "resumed": resumed}
    return {"schema": SCHEMA, **of_job, **{k: v for k, v in record.items() if k not in of_job}, **about, **when}


def failure(error: object) -> Result:
    """Return what a line says of a job that failed: the first line of its error, and whether that is the user's."""
    unexpected = error if isinstance(error, Exception) and not isinstance(error, DempError) else None
    text = str(error) if unexpected is None else f"{type(error).__name__}: {error}"
    first = (text.strip() or type(error).__name__).splitlines()[0]
    found = {"status": FAILED, "error": first, "mistake": isinstance(error, UsageError)}
    return found if unexpected is None else {**found, "traceback": "".join(traceback.format_exception(unexpected))}


def machine() -> str:
    """Return what times depend on when nothing runs on a GPU: processor and threads."""
    return run.machine({"device_name": device_name("cpu"), "threads": torch.get_num_threads()})
