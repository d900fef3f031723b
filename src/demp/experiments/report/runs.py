"""One run as a report sees it, whether its folder is at hand or only its line of results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from demp.experiments.report.thin import CurvePoint, Thinned, thinned
from demp.files.reading import JsonObject, Skipped, look, number, read_json, records
from demp.files.results import DONE
from demp.files.run import (
    ACCURACY,
    DENSE,
    FORWARD_AND_BACKWARD,
    SECONDS,
    SIZES,
    Cut,
    RunFiles,
    machine,
    no_cut,
    no_metrics,
    read_config,
    read_cuts,
)

UNFINISHED = "unfinished"
GLANCED = (ACCURACY, SECONDS, *SIZES)
"""What all runs of a large sweep are asked for."""


class Test(NamedTuple):
    """Accuracy after so many steps, FLOPs and seconds; NaN-free: what is not known is None."""

    step: float
    accuracy: float
    flops: float | None
    seconds: float | None


@dataclass
class ReportedRun:
    """All that a report says about one run."""

    name: str
    labels: dict[str, Any] = field(default_factory=dict)
    """What distinguishes it from other runs, except its seed."""
    seed: int | None = None
    status: str = UNFINISHED
    error: str = ""
    outcome: JsonObject = field(default_factory=dict)
    """As in summary.json; of an unfinished run what its last lines say."""
    config: JsonObject = field(default_factory=dict)
    machine: str = ""
    folder: Path | None = None
    series: dict[str, list[CurvePoint]] = field(default_factory=dict)
    """Metric -> thinned points."""
    tests: list[Test] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    """Layer -> dense width."""
    timings: list[JsonObject] = field(default_factory=list)
    """onnxruntime beside the dense network, from an export."""

    @property
    def method(self) -> str:
        """The name of the method: dense, demp, ..."""
        return str(self.labels.get("method") or self.outcome.get("method") or "run")

    @property
    def width(self) -> float | None:
        """Factor on the hidden widths of its network, if its config is known."""
        model = self.config.get("model")
        return number(model, "width") if isinstance(model, dict) else None

    @property
    def steps(self) -> int:
        """The number of steps that the run is to have."""
        return int(number(self.config, "steps") or number(self.outcome, "steps") or self.step)

    @property
    def step(self) -> int:
        """The number of steps that are done."""
        seen = [points[-1].step for points in self.series.values() if points] + [test.step for test in self.tests]
        return int(max([number(self.outcome, "steps") or 0, *seen]))

    def value(self, name: str) -> float | None:
        """Return a number of the outcome, or None."""
        return number(self.outcome, name)

    def share(self, name: str) -> float | None:
        """Return a number of the outcome over that of the dense network, or None."""
        now, dense = self.value(name), self.value(f"{name}_dense")
        return now / dense if now is not None and dense else None


def part(run: ReportedRun, name: str) -> str:
    """Return the name of a run's model, data or optimizer, without folders."""
    given = run.config.get(name)
    found = run.outcome.get(name) or (given.get("name") if isinstance(given, dict) else given) or run.labels.get(name)
    return str(found).rstrip("/").rpartition("/")[2] if isinstance(found, str | int | float) else ""


def read_run(folder: Path, skipped: Skipped) -> ReportedRun:
    """Read a run folder: config, outcome and machine, but not what it did over time."""
    files = RunFiles(folder)
    config = read_config(files.config_file, skipped)
    outcome = read_json(files.summary_file, skipped)
    method = config.get("method") if isinstance(config.get("method"), dict) else {}
    run = ReportedRun(
        name=folder.name, folder=folder, config=config, outcome=outcome, status=DONE if outcome else UNFINISHED
    )
    run.labels = {"method": outcome.get("method") or (method or {}).get("name") or "run"}
    seed = number(outcome, "seed") if "seed" in outcome else number(config, "seed")
    run.seed = None if seed is None else int(seed)
    run.machine = machine(read_json(files.environment_file, skipped))
    return run


def glance(run: ReportedRun, skipped: Skipped) -> None:
    """Read the tests of a run and a few of its lines, and where it stands if it has no summary."""
    if run.folder is None:
        return
    found = look(RunFiles(run.folder).metrics_file, skipped, f'"{ACCURACY}"'.encode(), no_metrics)
    series = {}
    for name in GLANCED:
        pairs = [(record["step"], record[name]) for record in found if number(record, name) is not None]
        if pairs:
            series[name] = thinned(pairs)
    settle(run, series)


def study_closely(run: ReportedRun, skipped: Skipped) -> None:
    """Read every line of metrics and cuts of a run, and the times of its exports."""
    if run.folder is None:
        return
    files, series = RunFiles(run.folder), dict[str, Thinned]()
    for record in records(files.metrics_file, skipped, no_metrics):
        step = record["step"]
        for name, value in record.items():
            if name != "step" and name.count("/") < 2 and (value := number(record, name)) is not None:
                if name not in series:
                    series[name] = Thinned()
                series[name].add(step, value)
    run.cuts, run.widths = read_cuts(files.cuts_file, skipped)
    settle(run, {name: points.points() for name, points in series.items()})
    for file in files.exports():
        timings = read_json(file, skipped).get("timings")
        run.timings += [one for one in timings if isinstance(one, dict)] if isinstance(timings, list) else []


def settle(run: ReportedRun, series: dict[str, list[CurvePoint]]) -> None:
    """Add the series to a run, and complete what is known of one without a summary."""
    run.series |= series
    run.tests = tests_of(run)
    if run.status != UNFINISHED or run.folder is None:
        return
    first: JsonObject = next(records(RunFiles(run.folder).cuts_file, Skipped(), no_cut), {})
    for metric in SIZES:
        if points := run.series.get(metric):
            name = metric.rpartition("/")[2].removesuffix("_alive")
            dense = number(first, f"{name}_before")
            run.outcome[name] = points[-1].value
            run.outcome[f"{name}_dense"] = points[0].value if dense is None else dense
    if run.tests:
        run.outcome[ACCURACY] = run.tests[-1].accuracy
    if points := run.series.get(SECONDS):
        run.outcome["train_seconds"] = points[-1].value


def tests_of(run: ReportedRun) -> list[Test]:
    """Return the tests of a run, each with what had been spent by then."""
    seconds, spent = run.series.get(SECONDS, []), spending(run)
    return [
        Test(step, value, None if spent is None else spent(step), before(seconds, step))
        for step, value in run.series.get(ACCURACY, [])
    ]


def before(points: list[CurvePoint], step: float) -> float | None:
    """Return the last value at or before a step, or None."""
    return next((value for at, value in reversed(points) if at <= step), None)


def spending(run: ReportedRun) -> Any:
    """Return training FLOPs as a function of the step, as the trainer counts them; None where cuts are not known."""
    batch, dense = number(run.config, "batch_size"), run.value("flops_dense")
    if not run.cuts and run.method != DENSE:
        return None
    flops = run.cuts[0].flops_before if run.cuts else dense
    if not batch or not flops:
        return None
    stretches = [(0.0, 0.0, flops)]
    """(step, spent by then, FLOPs of a forward from then on)"""
    for cut in run.cuts:
        step, spent, flops = stretches[-1]
        spent += FORWARD_AND_BACKWARD * batch * flops * (cut.step - step) + cut.forwards * cut.flops_before
        stretches.append((cut.step, spent, cut.flops))

    def at(step: float) -> float:
        begin, spent, cost = next(s for s in reversed(stretches) if s[0] <= step or s is stretches[0])
        return spent + FORWARD_AND_BACKWARD * batch * cost * (step - begin)

    return at
