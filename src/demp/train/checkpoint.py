"""Checkpoints: plain values only, written atomically, the last two kept.

A checkpoint is complete or absent: it is written under another name, synced to the disk and
renamed. A crash or a full disk leaves the one before untouched.
"""

import os
from pathlib import Path
from typing import Any

import torch

from demp.errors import DempError, UsageError

FORMAT = 1
KEEP = 2
SUFFIX = ".pt"


class CheckpointError(DempError, RuntimeError):
    """A checkpoint could not be written or read; older ones are as they were."""


def save(folder: Path, step: int, payload: dict[str, Any]) -> Path:
    """Write ``payload`` as the checkpoint of ``step``, then delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}{SUFFIX}"
    unfinished = path.with_suffix(".tmp")
    try:
        with unfinished.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **payload}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise CheckpointError(_not_written(path, error, newest(folder))) from error
    for old in listed(folder)[:-KEEP]:
        old.unlink()
    return path


def _not_written(path: Path, error: Exception, before: Path | None) -> str:
    chain = (error, error.__context__, error.__cause__)  # torch wraps what the file raised
    reason = next((e.strerror for e in chain if isinstance(e, OSError) and e.strerror), str(error))
    kept = f"the one before, {before.name}, is intact" if before else "there is none before it"
    return (
        f"could not write the checkpoint {path}: {reason.splitlines()[0]}; {kept}; "
        f"free space, then run: demp resume {path.parent.parent}"
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def listed(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return sorted(folder.glob(f"step-*{SUFFIX}"))


def newest(folder: Path) -> Path | None:
    """The last complete checkpoint, if there is one."""
    return next(reversed(listed(folder)), None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it might hold; tensors come to the CPU."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise CheckpointError(f"the checkpoint {path} is damaged; delete it to resume from the one before") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UsageError(f"{path} is not a checkpoint of this version of demp; start the run anew")
    return payload
