"""Lines of results: what a sweep, a comparison or a study keeps of each run that ended."""

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from demp.experiments.report.runs import ReportedRun, Test, before
from demp.experiments.report.thin import thinned
from demp.files.reading import LARGEST, JsonObject, Skipped, number, records
from demp.files.results import no_result, supersedes
from demp.files.run import ACCURACY, SECONDS

NUMBERS = (int, float)
LONG = 200
"""Stretches of a series that is much longer."""
VALUE = itemgetter(1)
FLAT = ("method", "setting", "optimizer")
"""What lines without ``labels`` have instead."""


def read_results(files: list[Path], skipped: Skipped) -> dict[str, ReportedRun]:
    """Return the run of each name, from its last line; what was done stays done, whatever a later line says."""
    found: dict[str, tuple[ReportedRun, JsonObject]] = {}
    for file in files:
        for record in records(file, skipped, no_result):
            line = {"status": record["status"], "began": str(record.get("began", ""))}
            if supersedes(line, found.get(record["name"], (None, None))[1]):
                found[record["name"]] = (run_of(record), line)
    return {name: run for name, (run, _) in found.items()}


def run_of(record: JsonObject) -> ReportedRun:
    """Return the run that a line of results tells of."""
    arguments = record.get("arguments") if isinstance(record.get("arguments"), dict) else {}
    config = (arguments or {}).get("config") or record.get("config")
    seed, machine = seed_of(record), record.get("machine")
    run = ReportedRun(
        name=record["name"],
        labels=labels_of(record),
        seed=seed,
        status=record["status"],
        error=str(record.get("error", "")),
        outcome={name: value for name, value in record.items() if plain(value)},
        config=config if isinstance(config, dict) else {},
        machine=machine if isinstance(machine, str) else "",
    )
    series = record.get("series")
    for name, pairs in series.items() if isinstance(series, dict) else ():
        if isinstance(pairs, list) and name.count("/") < 2:
            run.series[name] = thinned((pair[0], pair[1]) for pair in ends_of(pairs) if is_pair(pair))
    spent = run.series.get(SECONDS, [])
    run.tests = [Test(step, value, None, before(spent, step)) for step, value in run.series.get(ACCURACY, [])]
    return run


def labels_of(record: JsonObject) -> dict[str, Any]:
    """Return the labels of a run, its seed excepted."""
    labels = record.get("labels")
    if not isinstance(labels, dict):
        labels = {name: record[name] for name in FLAT if record.get(name)}
    return {name: value for name, value in labels.items() if name != "seed"}


def seed_of(record: JsonObject) -> int | None:
    """Return the seed of a run, from its labels or the line itself."""
    labels = record.get("labels")
    for place in (labels if isinstance(labels, dict) else {}, record):
        seed = number(place, "seed")
        if seed is not None:
            return int(seed)
    return None


def plain(value: Any) -> bool:
    """Return whether a table can show the value."""
    return isinstance(value, str | int | float) or (isinstance(value, list) and not any(map(nested, value)))


def nested(value: Any) -> bool:
    """Return whether the value is neither a number nor a text."""
    return not isinstance(value, str | int | float)


def ends_of(pairs: list[Any]) -> list[Any]:
    """Return of a long list the lowest and highest pair of every stretch, without a loop in Python over all pairs."""
    width = len(pairs) // LONG
    if width < 4:
        return pairs
    kept = []
    try:
        for at in range(0, len(pairs), width):
            stretch = pairs[at : at + width]
            kept += sorted((min(stretch, key=VALUE), max(stretch, key=VALUE)))
    except (TypeError, IndexError, KeyError):  # not all are pairs of numbers
        return pairs
    return [pairs[0], *kept, pairs[-1]]


def is_pair(pair: Any) -> bool:
    """Return whether this is a step and a value."""
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    step, value = pair
    return type(step) in NUMBERS and type(value) in NUMBERS and abs(step) < LARGEST and abs(value) < LARGEST


def words(setting: Mapping[str, Any]) -> str:
    """Return a setting as a reader wants it."""
    parts = []
    for name, value in setting.items():
        short = SHORT.get(name, name.rpartition(".")[2].replace("_", " "))
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(f"{short} {shown}")
    return ", ".join(parts)


SHORT = {
    "weight_sparsity": "weights",
    "target_neuron_sparsity": "neurons",
    "peak_strength": "strength",
    "peak_noise_std": "noise",
    "optimizer.name": "optimizer",
}
"""What is clear from the method's name."""
