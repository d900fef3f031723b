"""Checkpoints: plain values only, written atomically, the last two kept.

A checkpoint is complete or absent: it is written under another name, synced to the disk and
renamed. A crash or a full disk leaves the one before untouched. Every part carries a checksum.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

from demp import files
from demp.errors import DempError, UsageError

FORMAT = 1
KEEP = 2
SUFFIX = ".pt"


class CheckpointError(DempError, RuntimeError):
    """A checkpoint could not be written or read; older ones are as they were."""


def save(folder: Path, step: int, payload: dict[str, Any]) -> Path:
    """Write ``payload`` as the checkpoint of ``step``, then delete all but the newest two.

    Raises:
        CheckpointError: it could not be written; the one before is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}{SUFFIX}"
    try:
        with files.replacing_file(path) as file:
            torch.save({"format": FORMAT, "step": step, **payload}, file)
    except (OSError, RuntimeError) as error:
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


def listed(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return sorted(folder.glob(f"step-*{SUFFIX}"))


def newest(folder: Path) -> Path | None:
    """The last complete checkpoint, if there is one."""
    return next(reversed(listed(folder)), None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it might hold; tensors come to the CPU.

    Raises:
        CheckpointError: some byte of it is not as it was written. torch itself does not look at the checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        payload = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise whatever they met
        raise CheckpointError(f"the checkpoint {path} is damaged") from error
    if damaged:
        raise CheckpointError(f"the checkpoint {path} is damaged: its part {damaged} is not as it was written")
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UsageError(f"{path} is not a checkpoint of this version of demp; start the run anew")
    return payload
