"""Lines of results, as sweeps write them, whatever else lies in the files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demp.files import reading
from demp.files.reading import number
from demp.files.sweep import SweepFiles

Result = dict[str, Any]
"""A line of a file of results: what a finished job measured, or how it failed."""
Results = Sequence[Result]
"""Finished jobs, as tables and figures read them."""

SCHEMA = 1
"""Of a line."""
DONE, FAILED = "done", "failed"

TRAINING = "demp.sweep.training:trained"  # as results of every version name it, wherever the module is
"""The kind of work that the tables show."""
TEXTS = ("split", "machine", "torch")
DENSE = ("flops_dense", "train_flops_dense")
NUMBERS = (
    *("eval/top1", "neuron_sparsity", "weight_sparsity", "masked_share", "flops", "train_flops", "train_seconds"),
    *DENSE,
)
"""What every result of a training has, and which of these are divided by."""


@dataclass(frozen=True)
class ResultFile:
    """The results in some files of lines."""

    found: list[Result]
    """The last word on each name, in the order in which names first came."""
    skipped: tuple[str, ...]
    """FILE:LINE and why, of every line that is no result."""


def read(path: str | Path) -> ResultFile:
    """Read the results of a sweep folder, or of one file of lines."""
    follower = Follower(path)
    follower.look()
    return ResultFile(list(follower.found.values()), tuple(follower.skipped))


class Follower:
    """Reads results while others write them, every line once.

    A job that was done stays done, whatever a later line says. The last line of a file may be without its end while its
    writer lives; that is no fault and no result.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found: dict[str, Result] = {}
        """By name."""
        self.skipped: list[str] = []
        self._read: dict[Path, tuple[int, int]] = {}
        """Bytes and lines of each file that were read."""

    def look(self) -> None:
        """Read the lines that were appended since the last call."""
        files = [self.path] if self.path.is_file() else SweepFiles(self.path).result_files()
        for file in files:
            start, count = self._read.get(file, (0, 0))
            with file.open("rb") as stream:
                stream.seek(start)
                fresh = stream.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            lines = whole.split(b"\n")[:-1]
            self._read[file] = (start + len(whole), count + len(lines))
            for place, line in enumerate(lines, count + 1):
                self._take(f"{file}:{place}", line)

    def _take(self, place: str, line: bytes) -> None:
        record, fault = parsed(line)
        if record is None:
            self.skipped.append(f"{place} {fault}")
            return
        if supersedes(record, self.found.get(record["name"])):
            self.found[record["name"]] = record


def parsed(line: bytes) -> tuple[Result | None, str]:
    """Return the result in a line, or None and why there is none."""
    values, fault = reading.parsed(line)
    if values is None:
        return None, "is no result" if fault == reading.NO_OBJECT else "is not whole"
    if reason := no_result(values):
        return None, f"{'has' if reason.startswith('schema') else 'is'} {reason}"
    named = isinstance(values.get("identity"), str) and isinstance(values.get("labels"), dict)
    if not named:
        return None, "is no result"
    absent = missing(values)
    return (values, "") if not absent else (None, f"is not complete: it has no {absent}")


def no_result(record: Result) -> str:
    """Return why an object is no line of results; empty where it is one."""
    if isinstance(record.get("name"), str) and record.get("schema") != SCHEMA:
        return f"schema {record.get('schema')!r}, this version reads {SCHEMA}"
    known = isinstance(record.get("name"), str) and record.get("status") in (DONE, FAILED)
    return "" if known else "no result"


def missing(values: Result) -> str:
    """Return the name of a value that a result of its kind always has and this one has not; empty if it has all."""
    if values["status"] == FAILED:
        return "" if isinstance(values.get("error"), str) else "error"
    if values.get("work") != TRAINING:
        return ""
    labels = values["labels"]
    absent = [name for name in TEXTS if not isinstance(values.get(name), str)]
    absent += [name for name in NUMBERS if number(values, name) is None]
    absent += [name for name in DENSE if not values.get(name)]
    absent += ["method"] * (not isinstance(labels.get("method", ""), str))
    return next(iter(absent), "")


def supersedes(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """Return whether a line replaces an earlier one of its name: done stays done, else the last to begin counts."""
    if before is None or before["status"] != DONE:
        return True
    return record["status"] == DONE and record.get("began", "") >= before.get("began", "")
