"""Viewers of metrics: TensorBoard, Weights & Biases, Trackio. They show what metrics.jsonl holds, under the same names.

A sink is opened on a run folder and gets every line. When a run goes on, the lines that metrics.jsonl has are given
again, and those that the viewer has are dropped or passed over: nothing is missing, and nothing is there twice.
"""

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from demp.errors import UsageError
from demp.train.choices import SinkName
from demp.train.config import TrainConfig
from demp.train.extras import need
from demp.train.observer import Observer
from demp.train.run import Run
from demp.train.runfolder import RunFolder, read_lines, write_text

PROJECT = "demp"
"""Where runs lie in W&B, unless ``WANDB_PROJECT`` says otherwise, and in Trackio."""


class Sink(Protocol):
    """A viewer of metrics that is open: it takes the numbers of a step by the names that they have in metrics.jsonl."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step; one step may come in several parts."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run; a run that goes on writes them anew."""

    def __init__(self, folder: Path, name: str, config: TrainConfig) -> None:
        writer = need("torch.utils.tensorboard", "tensorboard").SummaryWriter
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.writer = writer(folder / "tensorboard", purge_step=0)  # a viewer that runs forgets what it has read
        self.writer.add_text("config", f"```\n{config.to_toml()}```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar each, flushed: a live view."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the writer of event files."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, its files in the folder ``wandb`` of the run; ``WANDB_MODE=offline`` needs no account.

    A run that goes on is the same run there: steps that the service has are passed over; files of an offline run are
    written anew.
    """

    def __init__(self, folder: Path, name: str, config: TrainConfig) -> None:
        wandb = need("wandb", "wandb")
        identity = name.rsplit("-", 1)[-1]
        for written in (folder / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(written)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, id=identity, resume="allow",
                dir=folder, config=config.to_dict(), settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except wandb.Error as error:
            raise UsageError(
                f"Weights & Biases does not begin: {str(error).strip()}; log in with: wandb login, or set "
                f"WANDB_MODE=offline; then: demp resume {folder}"
            ) from error
        self.first = self.run.step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """What the service does not have."""
        if step >= self.first:
            self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Send the remaining metrics and finish the run."""
        self.run.finish()


class Trackio:
    """A run of Trackio's project ``demp``, kept on this machine; a run that goes on is written anew."""

    def __init__(self, folder: Path, name: str, config: TrainConfig) -> None:
        with redirect_stdout(sys.stderr):
            self.trackio = trackio = need("trackio", "trackio")
            for written in _written(trackio, name):
                written.delete()
            self.run = trackio.init(project=PROJECT, name=name, resume="allow", config=config.to_dict(), embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write the remaining metrics and finish the run."""
        with redirect_stdout(sys.stderr):
            self.trackio.finish()


def _written(trackio: Any, name: str) -> list[Any]:
    try:
        return [run for run in trackio.Api().runs(PROJECT) if run.name == name]
    except ValueError:  # no such project yet
        return []


SINKS: dict[SinkName, tuple[str, Callable[[Path, str, TrainConfig], Sink]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
    "trackio": ("trackio", Trackio),
}
"""Name in the config -> the package that it needs, and how it is opened on a run folder."""


class Feed(Observer):
    """Feeds the lines of metrics.jsonl to sinks."""

    def __init__(self, names: tuple[SinkName, ...]) -> None:
        self.names = names
        self.sinks: list[Sink] = []

    def start(self, run: Run) -> None:
        """Open the sinks, and give them what the run folder holds."""
        folder = RunFolder(run.config.out)
        name = _name(folder.path)
        for kind in self.names:
            self.sinks.append(SINKS[kind][1](folder.path, name, run.config))
        for record in read_lines(folder.metrics_file):
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """The numbers of a line; texts stay in metrics.jsonl."""
        values = {key: value for key, value in record.items() if key != "step" and isinstance(value, int | float)}
        for sink in self.sinks:
            sink.log(record["step"], values)

    def close(self) -> None:
        """Close all sinks and forget them."""
        for sink in self.sinks:
            sink.close()
        self.sinks.clear()


def watchers(config: TrainConfig) -> list[Observer]:
    """The observer that feeds the sinks of a run, if it has any.

    Raises:
        UsageError: a package is absent, or there is no run folder to write in.
    """
    for name in config.sinks:
        need(SINKS[name][0], name)
    if config.sinks and not config.out:
        raise UsageError("sinks write beside the run; name its folder with out")
    return [Feed(config.sinks)] if config.sinks else []


def _name(path: Path) -> str:
    """What viewers call the run: the folder's name and an identity that the folder keeps."""
    file = path / "sinks.txt"
    if not file.is_file():
        write_text(file, f"{path.resolve().name}-{uuid.uuid4().hex[:8]}\n")
    return file.read_text(encoding="utf-8").strip()
