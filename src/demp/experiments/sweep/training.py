"""The work of a training job, made by the ordinary trainer in a run folder of its own, and what its files say then."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.side_by_side import step_over_dense
from demp.files.results import TRAINING
from demp.files.run import machine
from demp.train import Observer, TrainConfig, resume, train
from demp.train.defaults import written_out
from demp.train.runfolder import RunFolder, environment, read_json, read_lines

SEVERAL = "several machines"
"""Where a run was made on more than one; its times compare with no other's."""
POINTS = 500
"""The most that a series keeps."""


def training(
    name: str, config: TrainConfig, *, labels: dict[str, Any], beside_dense: bool = False, series: Sequence[str] = ()
) -> Job:
    """Return the job of one training run.

    ``beside_dense`` measures its step beside the dense network's at the end. ``series`` names what the result keeps
    over time, of the metrics in docs/files.md.
    """
    arguments: dict[str, Any] = {"config": written_out(config.merged({"out": ""})).to_dict()}
    arguments |= {"beside_dense": True} if beside_dense else {}
    arguments |= {"series": list(series)} if series else {}
    return Job(name=name, work=TRAINING, arguments=arguments, labels=labels)


def trained(arguments: Mapping[str, Any], folder: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """Begin the run, or go on with it; the result of one that reaches its end.

    Raises:
        UsageError: an argument that there is not, or a run that cannot be made; see `demp.train.train`.
    """
    unknown = arguments.keys() - {"config", "beside_dense", "series"}
    if unknown:
        raise UsageError(f"a training job has no argument {sorted(unknown)[0]!r}; it has config, beside_dense, series")
    config = TrainConfig.from_dict(arguments["config"])
    files = RunFolder(folder)
    if not files.config_file.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # what a process left that was killed before its first step
        train(config.merged({"out": str(folder)}), observers=observers)
    elif files.summary() is None:
        resume(folder, observers=observers, trust=files.config().model == config.model)
    beside = step_over_dense(config, folder) if arguments.get("beside_dense") else {}
    return {**result(files), **beside, **over_time(files, arguments.get("series", ()))}


def result(files: RunFolder) -> dict[str, Any]:
    """Return what the files of a finished run say, and where it was made."""
    cuts = read_lines(files.cuts_file)
    began, now = read_json(files.environment_file), environment(files.config())
    same = all(began[name] == now[name] for name in ("device_name", "threads", "platform"))
    return {
        **(files.summary() or {}),
        "cut_steps": [cut["step"] for cut in cuts if cut["removed"]],
        "notes": list(dict.fromkeys(note for cut in cuts for note in cut["notes"])),
        "machine": machine(now) if same else SEVERAL,
    }


def over_time(files: RunFolder, names: Sequence[str]) -> dict[str, Any]:
    """Return metrics over steps, name -> [[step, value], ...], thinned to what a figure can show."""
    if not names:
        return {}
    lines = read_lines(files.metrics_file)
    return {"series": {name: thinned([[at["step"], at[name]] for at in lines if name in at]) for name in names}}


def thinned(points: list[list[Any]]) -> list[list[Any]]:
    """Return at most `POINTS` of the points, evenly spread, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    last = len(points) - 1
    return [points[round(index * last / (POINTS - 1))] for index in range(POINTS)]


def brief(record: Mapping[str, Any]) -> str:
    """Return one line on a training run."""
    masked = f" and {record['masked_share']:.0%} masked" if record["masked_share"] else ""
    return (
        f"{record['split']} accuracy {record['eval/top1']:.2%}, {record['neuron_sparsity']:.0%} of neurons removed, "
        f"{record['weight_sparsity']:.0%} of weights removed{masked}, {record['train_seconds']:.0f} s"
    )
