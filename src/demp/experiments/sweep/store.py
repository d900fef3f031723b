"""The folder of a sweep: what its jobs share, one folder per job, one line per job that has ended."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from demp import files
from demp.errors import UsageError
from demp.experiments.sweep.job import Job
from demp.files import results
from demp.files.replacement import sync
from demp.files.results import Result
from demp.files.schema import flat
from demp.files.sweep import SweepFiles
from demp.train.defaults import as_meant
from demp.train.runfolder import read_json

SYNC_SECONDS = 0.2
"""Between two times that results are brought to the disk: a machine that fails loses no more than it does in this."""


class Store(SweepFiles):
    """One sweep on disk. It grows: jobs may be added later, beside what is shared."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._follower = results.Follower(self.path)
        self._synced_at = float("-inf")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make this process the only one that runs jobs of this folder; the lock falls with the process.

        Raises:
            UsageError: another process is at it, or the file system has no locks.
        """
        lock = FileLock(self.lock_file, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"another command runs the jobs of {self.path}; wait for its end, or stop it (several at once are one "
                "command with --jobs 2)"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot lock {self.lock_file} ({error.strerror}); choose another folder") from error
        try:
            drop_unfinished(self.results_file)
            yield
        finally:
            sync(self.results_file)
            lock.release()

    def begin(self, jobs: Iterable[Job], *, what: str = "a sweep", shared: Mapping[str, Any] | None = None) -> None:
        """Take up the folder for these jobs; ``shared`` is what all jobs of this folder have in common.

        Raises:
            UsageError: what is there is not such a folder, or one of other jobs.
        """
        mine = {"schema": results.SCHEMA, "what": what, "shared": plain(shared or {})}
        if not self.sweep_file.is_file():
            if self.path.is_dir() and any(not file.name.startswith(".sweep") for file in self.path.iterdir()):
                noun = what.split()[-1]
                raise UsageError(f"the folder {self.path} is not empty and holds no {noun}; give another with --out")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"cannot create the folder {self.path}: {error.strerror}; give another") from error
            put_once(self.sweep_file, mine)
        there = self.about()
        if there["what"] != what:
            raise UsageError(f"{self.path} holds {there['what']}, not {what}; give another folder with --out")
        self._raise_if_changed(what, changes(there["shared"], mine["shared"]))
        for folder in (self.runs, self.results):
            folder.mkdir(exist_ok=True)
        ended = {record["name"]: record for record in self.records()}
        for job in jobs:
            begun = read_json(file) if (file := self.job_file(job.name)).is_file() else ended.get(job.name)
            if begun is not None:
                self._validate_same(job, begun)

    def _validate_same(self, job: Job, begun: Mapping[str, Any]) -> None:
        """Raise a `UsageError` unless what was begun under the name of ``job`` is that job."""
        if not isinstance(begun, dict) or not {"identity", "work", "arguments"} <= begun.keys():
            raise UsageError(f"{self.job_file(job.name)} is damaged; delete it, and the run {job.name} goes on")
        if identity_now(begun) != job.identity:
            self._raise_if_changed(f"the run {job.name}", changes(called(begun), called(job.about())) or ["its work"])

    def _raise_if_changed(self, what: str, changed: list[str]) -> None:
        if changed:
            raise UsageError(
                f"{self.path} holds {what} with another config: {'; '.join(changed)}; give another folder with --out"
            )

    def about(self) -> dict[str, Any]:
        """``what`` this is, and what its jobs have in common: ``shared``.

        Raises:
            UsageError: the folder holds no sweep.
        """
        if not self.sweep_file.is_file():
            raise UsageError(f"{self.path} holds no sweep (it has no {self.sweep_file.name}); check the path")
        about = read_json(self.sweep_file)
        if not isinstance(about, dict) or not isinstance(about.get("shared"), dict) or "what" not in about:
            raise UsageError(f"{self.sweep_file} is damaged; restore it, or give another folder with --out")
        return about

    def note(self, job: Job) -> None:
        """Write down that a job begins.

        Raises:
            UsageError: another job of this name was begun meanwhile.
        """
        put_once(self.job_file(job.name), job.about())
        self._validate_same(job, read_json(self.job_file(job.name)))

    def records(self) -> list[Result]:
        """Return the records of all jobs that have ended, the last one of each."""
        self._follower.look()
        return list(self._follower.found.values())

    def skipped(self) -> list[str]:
        """Return which lines of the results are no records, and why."""
        self._follower.look()
        return self._follower.skipped

    def of(self, jobs: Iterable[Job]) -> dict[str, Result]:
        """Return by name the records of those jobs that have ended, also if an equal job of another name has."""
        ended: dict[str, Result] = {}
        for record in self.records():
            identity = identity_now(record)
            if ended.get(identity, record)["status"] != results.DONE:
                ended[identity] = record
            else:
                ended.setdefault(identity, record)
        return {
            job.name: {**ended[job.identity], "name": job.name, "labels": job.labels}
            for job in jobs
            if job.identity in ended
        }

    def add(self, record: Result) -> None:
        """Append one line of results, and bring it to the disk unless another was brought just before."""
        with self.results_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            if time.monotonic() - self._synced_at >= SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced_at = time.monotonic()


def put_once(path: Path, values: Mapping[str, Any]) -> None:
    """Write values to a file whole, unless it is there."""
    files.write_once(path, json.dumps(values, indent=2) + "\n")


def drop_unfinished(path: Path) -> None:
    """Cut off a last line without an end: its writer was killed, and its job is to be done again."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


def identity_now(about: Mapping[str, Any]) -> str:
    """Return the identity that equal jobs have today of one that was written down (`demp.train.defaults`)."""
    arguments = about.get("arguments")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("config"), dict):
        return about["identity"]
    meant = {**arguments, "config": as_meant(arguments["config"])}
    if meant == arguments:
        return about["identity"]
    return Job(name=about["name"], work=about["work"], arguments=meant).identity


def called(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the work and arguments of a job, with its config as it was meant."""
    arguments = about["arguments"]
    config = {"config": as_meant(arguments["config"])} if isinstance(arguments.get("config"), dict) else {}
    return {"work": about["work"], **arguments, **config}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each value that differs; names as the user knows them."""
    mine, theirs = flat(before), flat(now)
    return [
        f"{name.removeprefix('config.')} was {mine.get(name)!r} and is {theirs.get(name)!r}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON reads them back."""
    return json.loads(json.dumps(values))
