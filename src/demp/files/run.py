"""The folder of one run: its files, and what a line of its metrics and cuts is."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from demp.files.reading import JsonObject, Skipped, number, records

DENSE = "dense"
"""The method name of the baseline: plain training, no pruner."""
FORWARD_AND_BACKWARD = 3
"""A training step costs three forwards: the paper's convention, 1 % above the exact count."""
ACCURACY, SECONDS = "eval/top1", "time/seconds"
SIZES = ("prune/neurons_alive", "cost/parameters", "cost/flops")
"""Metrics that say what the network is at a step."""


class RunFiles:
    """Where the files of a run are."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.cuts_file = self.path / "cuts.jsonl"
        self.summary_file = self.path / "summary.json"
        self.lock_file = self.path / ".lock"
        """Held by the process that writes into the run; deleted when it is done."""
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    def exist(self) -> bool:
        """Return whether a run is here, whole or begun."""
        return any(file.is_file() for file in (self.config_file, self.summary_file, self.metrics_file))

    def exports(self) -> list[Path]:
        """Return the reports of all exports of the run."""
        return sorted(self.path.glob("*/export.json"))


class Cut(NamedTuple):
    """One check of a run: what the network was before and after it."""

    step: int
    removed: int
    neurons: float
    parameters: float
    flops_before: float
    flops: float
    forwards: float
    """What the search for dead neurons cost, in forwards of one example."""
    seconds: float
    kept: dict[str, int]
    """Layer -> width after it."""
    dead: float | None = None
    """Of the removed neurons, those that were zero; None in files that do not tell."""
    saturated: float | None = None
    """Of the removed neurons, those that were another constant."""


def no_metrics(record: JsonObject) -> str:
    """Return why a line of metrics.jsonl holds no metrics of a step; empty where it does."""
    return "" if number(record, "step") is not None else "no step"


def no_cut(record: JsonObject) -> str:
    """Return why a line of cuts.jsonl is no report of a cut; empty where it is one."""
    wanted = ("step", "removed", "neurons_after", "parameters_after", "flops_before", "flops_after")
    missing = [name for name in wanted if number(record, name) is None]
    return f"no cut (it has no {missing[0]})" if missing else ""


def read_cuts(file: Path, skipped: Skipped) -> tuple[list[Cut], dict[str, int]]:
    """Return every check that was logged anew, and the dense width of every layer."""
    cuts: list[Cut] = []
    dense: dict[str, int] = {}
    for record in records(file, skipped, no_cut):
        layers = record.get("layers")
        kept = {}
        for layer, widths in layers.items() if isinstance(layers, dict) else ():
            before, now = (number(widths, name) if isinstance(widths, dict) else None for name in ("before", "kept"))
            if before is not None and now is not None:
                dense.setdefault(layer, int(before))
                kept[layer] = int(now)
        judged = record.get("judged")
        cuts.append(
            Cut(
                step=int(record["step"]),
                removed=int(record["removed"]),
                neurons=record["neurons_after"],
                parameters=record["parameters_after"],
                flops_before=record["flops_before"],
                flops=record["flops_after"],
                forwards=(number(judged, "forwards") if isinstance(judged, dict) else None) or 0.0,
                seconds=number(record, "seconds") or 0.0,
                kept=cuts[-1].kept if cuts and cuts[-1].kept == kept else kept,
                dead=number(record, "dead"),
                saturated=number(record, "saturated"),
            )
        )
    return cuts, dense


def read_config(path: Path, skipped: Skipped) -> JsonObject:
    """Return the values of a TOML file; empty where there is none, and named where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        skipped.add(path, "cannot be read" if isinstance(error, OSError) else "not TOML")
        return {}


def machine(environment: Mapping[str, Any]) -> str:
    """Return in words what times depend on, processor and threads, from environment.json; empty if it does not say."""
    name, threads = environment.get("device_name"), number(environment, "threads")
    if not isinstance(name, str):
        return ""
    return f"{name}, {threads:.0f} thread{'s' * (threads > 1)}" if threads else name
