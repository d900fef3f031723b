"""One run of a comparison, made by the ordinary trainer; also a process of its own: ``python -m demp.compare.one``."""

import gc
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from demp.compare.plan import Planned
from demp.compare.side_by_side import step_over_dense
from demp.compare.store import DONE, FAILED, SCHEMA
from demp.errors import DempError, UsageError
from demp.train import Observer, TrainConfig, resume, train
from demp.train.config import DENSE
from demp.train.runfolder import RunFolder, environment, read_json, read_lines
from demp.train.stopping import TrainingInterrupted


def carry_out(run: Planned, folder: Path, observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Begin the run, or go on with it, and say what came out; a run that fails says why.

    Raises:
        TrainingInterrupted: it was asked to stop, and can be continued.
    """
    try:
        return finished(run, folder, observers)
    except Exception as error:
        return failure(run, error if isinstance(error, DempError) else f"{type(error).__name__}: {error}")
    finally:
        gc.collect()


def finished(run: Planned, folder: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """The record of a run that reaches its end."""
    files = RunFolder(folder)
    begun = files.config_file.is_file()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)  # what a process left that was killed before its first step
        train(run.config.merged({"out": str(folder)}), observers=observers)
    elif files.summary() is None:
        resume(folder, observers=observers)
    return record_of(run, folder, measure=run.method != DENSE)


def record_of(run: Planned, folder: Path, *, measure: bool) -> dict[str, Any]:
    """What the files of a finished run say, and its step beside the dense network's."""
    files = RunFolder(folder)
    cuts = read_lines(files.cuts_file)
    began, now = read_json(files.path / "environment.json"), environment(run.config)
    same = all(began[name] == now[name] for name in ("device_name", "threads", "platform"))
    return {
        **about(run),
        "status": DONE,
        **(files.summary() or {}),
        "cut_steps": [cut["step"] for cut in cuts if cut["removed"]],
        "notes": list(dict.fromkeys(note for cut in cuts for note in cut["notes"])),
        **(step_over_dense(run.config, folder) if measure else {}),
        "machine": f"{now['device_name']}, {now['threads']} thread{'s' * (now['threads'] > 1)}"
        if same
        else "several machines",
        "torch": str(torch.__version__),
    }


def place(now: dict[str, Any]) -> str:
    """What times depend on."""
    threads = now["threads"]
    return f"{now['device_name']}, {threads} thread{'s' if threads > 1 else ''}"


def failure(run: Planned, error: object) -> dict[str, Any]:
    """The record of a run that did not reach its end."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    mistake = isinstance(error, UsageError)
    return {**about(run), "status": FAILED, "error": first, "mistake": mistake, "config_hash": run.config.identity()}


def about(run: Planned) -> dict[str, Any]:
    """What identifies a run."""
    return {
        "schema": SCHEMA,
        "name": run.name,
        "method": run.method,
        "setting": run.setting,
        "seed": run.seed,
        "optimizer": run.config.optimizer.name,
    }


class Orphaned(Observer):
    """Stops a run whose parent process is gone."""

    def __init__(self) -> None:
        self.parent = os.getppid()

    def asks_to_stop(self) -> bool:
        """Is the parent another one?"""
        return os.getppid() != self.parent


def main() -> int:
    """Read a run from stdin as JSON, carry it out, print its record."""
    asked = json.loads(sys.stdin.read())
    torch.set_num_threads(asked["threads"] or torch.get_num_threads())
    config = TrainConfig.from_dict(asked["config"])
    run = Planned(asked["name"], asked["method"], asked["setting"], asked["seed"], config)
    try:
        record = carry_out(run, Path(asked["folder"]), [Orphaned()])
    except TrainingInterrupted as stop:
        return stop.exit_code
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
