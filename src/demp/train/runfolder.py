"""The files of a run: config, environment, metrics, cuts, summary, checkpoints, model."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from demp import files
from demp.errors import DempError, UsageError
from demp.files.run import RunFiles
from demp.parallel import everyone
from demp.train.config import TrainConfig, read_toml
from demp.train.defaults import as_meant

PACKAGES = ("torch", "demp", "safetensors", "datasets", "kornia", "timm", "numpy")


class RunFolderError(DempError, RuntimeError):
    """A file of a run could not be written."""


class RunFolder(RunFiles):
    """One run on disk. Nothing in it but weights is binary; every line is written as it happens."""

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> "RunFolder":
        """Start a run in an empty or new folder, or where one was killed before it began.

        Raises:
            UsageError: the folder holds a run or something else, or cannot be made.
        """
        folder = cls(path)
        if folder.config_file.exists():
            raise UsageError(
                f"{path} already holds a run; continue it with: demp resume {path}, or give another folder with --out"
            )
        if folder.path.is_dir() and not folder.never_began():
            raise UsageError(f"the folder {path} is not empty; give another with --out")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot create the run folder {path}: {error.strerror}") from error
        write_text(folder.environment_file, _json(environment(config)))
        write_text(folder.metrics_file, "")
        write_text(folder.cuts_file, "")
        write_text(folder.config_file, config.to_toml())
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open the folder of an existing run.

        Raises:
            UsageError: there is no run, or it was ended before its first step.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            if folder.path.is_dir() and any(folder.path.iterdir()) and folder.never_began():
                raise UsageError(
                    f"the run {path} was ended before its first step, so there is nothing to continue; start it again "
                    f"with the same command, in the same folder: --out {path}"
                )
            raise UsageError(f"{path} is not a run folder (it has no config.toml); check the path")
        return folder

    def never_began(self) -> bool:
        """Is there at most what a run writes before its config, which comes last?"""
        own = {self.metrics_file, self.cuts_file, self.environment_file, self.lock_file}
        own |= {file.with_name(f".{file.name}{files.UNFINISHED}") for file in (*own, self.config_file)}
        empty = all(not file.exists() or not file.stat().st_size for file in (self.metrics_file, self.cuts_file))
        return empty and own >= set(self.path.iterdir())

    @contextmanager
    def held(self) -> Iterator[None]:
        """The only process that writes into this run, from opening it to its summary.

        Raises:
            UsageError: another process is at it, or the folder cannot be written into.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = files.try_to_hold(self.lock_file)
        except OSError as error:
            raise UsageError(f"cannot write into the run folder {self.path}: {error.strerror}") from error
        if handle is None:
            raise UsageError(f"the run {self.path} is in progress in another process; wait for it, or stop it")
        try:
            yield
        finally:
            self.lock_file.unlink(missing_ok=True)
            os.close(handle)

    def config(self) -> TrainConfig:
        """The config that the run was started with, as it was meant then."""
        return TrainConfig.from_dict(as_meant(read_toml(self.config_file)))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        _append(self.metrics_file, record)

    def log_cut(self, record: Mapping[str, Any]) -> None:
        """Append one line about a cut."""
        _append(self.cuts_file, record)

    def lines(self) -> dict[str, int]:
        """How many lines metrics and cuts have; a checkpoint stores it."""
        return {file.name: _synced(file).count(b"\n") for file in (self.metrics_file, self.cuts_file)}

    def hashes(self) -> dict[str, str]:
        """Hashes of metrics and cuts as they are; a checkpoint stores them beside the number of lines."""
        return {file.name: hash_of([file.read_bytes()]) for file in (self.metrics_file, self.cuts_file)}

    def rewind(self, lines: Mapping[str, int]) -> None:
        """Drop what was written after a checkpoint, so that the resumed run writes it again."""
        for file in (self.metrics_file, self.cuts_file):
            there = file.read_bytes() if file.is_file() else b""
            write_text(file, b"".join(there.splitlines(keepends=True)[: lines.get(file.name, 0)]))

    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that ended, else None."""
        return read_json(self.summary_file) if self.summary_file.exists() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; its presence says that the run ended."""
        write_text(self.summary_file, _json(summary))


def read_json(path: Path) -> Any:
    """The values of a JSON file.

    Raises:
        UsageError: it cannot be read, or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a JSON-lines file.

    Raises:
        UsageError: it cannot be read, or a line is damaged.
    """
    records = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UsageError(f"{path}:{number} is not a whole line of JSON; restore the file, or delete that line")
        records.append(record)
    return records


def environment(config: TrainConfig) -> dict[str, Any]:
    """Versions, device, command and seed: what one needs to run it again."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": config.device,
        "device_name": device_name(config.device),
        "threads": torch.get_num_threads(),
        "processes": everyone().world_size,
        "command": sys.argv,
        "seed": config.seed,
        "config_hash": config.identity(),
    }


def _version(package: str) -> str:
    try:
        return torch.__version__ if package == "torch" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def device_name(device: str) -> str:
    """Return what the device is sold as: the GPU's name or the processor's."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def write_text(path: Path, text: str | bytes) -> None:
    """Write a small file so that it is complete or as before.

    Raises:
        RunFolderError: it could not be written.
    """
    try:
        files.write(path, text)
    except OSError as error:
        raise RunFolderError(f"could not write {path}: {error.strerror}; free space") from error


def _append(path: Path, record: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"could not write {path}: {error.strerror}; free space, then run: demp resume {path.parent}"
        ) from error


def _synced(path: Path) -> bytes:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a checkpoint must not outlive the lines that it counts
        return file.read()


def hash_of(lines: Iterable[bytes]) -> str:
    """Of lines as they stand in their file."""
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
