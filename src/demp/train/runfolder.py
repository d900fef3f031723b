"""The files of a run: config, environment, metrics, cuts, summary, checkpoints, model."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from demp import ranks
from demp.errors import DempError, UsageError
from demp.train.config import TrainConfig, read_toml
from demp.train.defaults import as_meant

PACKAGES = ("torch", "demp", "safetensors", "datasets", "kornia", "timm", "numpy")


class RunFolderError(DempError, RuntimeError):
    """A file of a run could not be written."""


class RunFolder:
    """One run on disk. Nothing in it but weights is binary; every line is written as it happens."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.cuts_file = self.path / "cuts.jsonl"
        self.summary_file = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> "RunFolder":
        """Start a run in an empty or new folder; a folder that holds a run is refused."""
        folder = cls(path)
        if folder.config_file.exists():
            raise UsageError(
                f"{path} already holds a run; continue it with: demp resume {path}, or give another folder with --out"
            )
        if folder.path.is_dir() and any(folder.path.iterdir()):
            raise UsageError(f"the folder {path} is not empty; give another with --out")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot create the run folder {path}: {error.strerror}") from error
        write_text(folder.path / "environment.json", _json(environment(config)))
        write_text(folder.metrics_file, "")
        write_text(folder.cuts_file, "")
        write_text(folder.config_file, config.to_toml())
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run."""
        folder = cls(path)
        if not folder.config_file.is_file():
            raise UsageError(f"{path} is not a run folder (it has no config.toml); check the path")
        return folder

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
        return {file.name: _count(file) for file in (self.metrics_file, self.cuts_file)}

    def rewind(self, lines: Mapping[str, int]) -> None:
        """Drop what was written after a checkpoint, so that the resumed run writes it again."""
        for file in (self.metrics_file, self.cuts_file):
            kept = file.read_bytes().splitlines(keepends=True)[: lines.get(file.name, 0)]
            write_text(file, b"".join(kept).decode())

    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that ended, else None."""
        return read_json(self.summary_file) if self.summary_file.exists() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; its presence says that the run ended."""
        write_text(self.summary_file, _json(summary))


def read_json(path: Path) -> Any:
    """The values of a JSON file; a damaged file is one sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def environment(config: TrainConfig) -> dict[str, Any]:
    """Versions, device, command and seed: what one needs to run it again."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": config.device,
        "device_name": _device_name(config.device),
        "threads": torch.get_num_threads(),
        "processes": ranks.place(ranks.everyone())[1],
        "command": sys.argv,
        "seed": config.seed,
        "config_hash": config.identity(),
    }


def _version(package: str) -> str:
    try:
        return torch.__version__ if package == "torch" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is complete or as before."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunFolderError(f"could not write {path}: {error.strerror}; free space") from error


def _append(path: Path, record: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"could not write {path}: {error.strerror}; free space, then run: demp resume {path.parent}"
        ) from error


def _count(path: Path) -> int:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a checkpoint must not outlive the lines that it counts
        return file.read().count(b"\n")


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
