"""From which checkpoint a run goes on: the newest, if it and the logs that it counts are as they were written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.train import checkpoint
from demp.train.checkpoint import CheckpointError
from demp.train.runfolder import RunFolder, hash_of


def last_state(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and what it holds; None if there is none.

    Raises:
        CheckpointError: a file that the run would read is not as it was written; names the older checkpoint that is
            whole. Nothing is deleted: an older one is taken when the user says so, by deleting the newer.
    """
    found = checkpoint.listed(folder.checkpoints)
    if not found:
        return None
    try:
        return found[-1], whole(folder, found[-1])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {remedy(folder, found)}") from error


def whole(folder: RunFolder, path: Path) -> dict[str, Any]:
    """What a checkpoint holds, if every byte of it and of the logs up to it is as it was written.

    Raises:
        CheckpointError: it is not.
    """
    state = checkpoint.load(path)
    counts, hashes = state.get("lines"), state.get("lines_sha256", {})
    for file in (folder.metrics_file, folder.cuts_file):
        count = counts.get(file.name, 0) if isinstance(counts, Mapping) else 0
        lines = file.read_bytes().splitlines(keepends=True)[:count] if file.is_file() else []
        there = sum(line.endswith(b"\n") for line in lines)
        if there < count:
            raise CheckpointError(f"{file} has {there} lines, and {path.name} counts {count}")
        if hashes.get(file.name, hash_of(lines)) != hash_of(lines):
            raise CheckpointError(f"{file} was altered: its first {count} lines are not those of {path.name}")
    return state


def remedy(folder: RunFolder, found: list[Path]) -> str:
    """The last checkpoint but the newest that is whole, and how to go on from it."""
    for path in reversed(found[:-1]):
        try:
            whole(folder, path)
        except (CheckpointError, UsageError):
            continue
        newer = ", ".join(str(file) for file in found[found.index(path) + 1 :])
        return f"{path.name} before it is whole: to go on from there, delete {newer}"
    return "no older checkpoint is whole: start the run anew"
