"""Lines of results that have ended, as sweeps write them: readable without torch, whatever else lies in the files."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Of a line."""
DONE, FAILED = "done", "failed"
FOLDER = "results"
"""Of a sweep; it holds one file per process that led it."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """What files of lines hold."""

    found: list[Record]
    """The last word on each name, in the order in which names first came."""
    skipped: tuple[str, ...]
    """FILE:LINE and why, of every line that is no result."""


def read(path: str | Path) -> Records:
    """The results of a sweep folder, or of one file of lines.

    A job that was done stays done, whatever a later line says. The last line of a file may be without its end while its
    writer lives; that is no fault and no result.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted((path / FOLDER).glob("*.jsonl"))
    found: dict[str, Record] = {}
    skipped: list[str] = []
    for record in lines(files, skipped):
        before = found.get(record["name"])
        if before is None or before["status"] != DONE or (record["status"] == DONE and newer(record, before)):
            found[record["name"]] = record
    return Records(list(found.values()), tuple(skipped))


def lines(files: Iterable[Path], skipped: list[str]) -> Iterable[Record]:
    """Every result in the files; what is none is named in ``skipped``."""
    for file in files:
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
            record, fault = parsed(line)
            if record is None:
                skipped.append(f"{file}:{number} {fault}")
            else:
                yield record


def parsed(line: bytes) -> tuple[Record | None, str]:
    """The result in a line, or None and why there is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return None, "is not whole"
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        return None, "is no result"
    if values.get("schema") != SCHEMA:
        return None, f"has schema {values.get('schema')!r}, this version reads {SCHEMA}"
    if values.get("status") not in (DONE, FAILED) or not isinstance(values.get("labels"), dict):
        return None, "is no result"
    return values, ""


def newer(record: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Did this one begin later? Lines of one writer stand in that order."""
    return record.get("began", "") >= before.get("began", "")
