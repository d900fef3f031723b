"""Dead neurons over the steps of training runs: how often studies look, and how they draw it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demp.files.results import Result, Results
from demp.train.config import TrainConfig

SHARE, WHOLE, OVERLAP, STILL = "dead/share", "dead/share_whole", "dead/overlap", "dead/still"
"""Metrics of docs/files.md."""
LOOKS = {"smoke": 4, "cpu": 40, "paper": 200}
"""In one run."""
WHOLE_LOOKS = {"smoke": 2, "cpu": 4, "paper": 40}
"""At the whole training split."""
FEW_LOOKS = 12
"""Up to so many, a line shows where they were."""
CPU_STEPS = 1000


def watched(config: TrainConfig, scale: str, *, whole: bool = False, **monitor: Any) -> TrainConfig:
    """The config with looks at which neurons are dead; ``whole`` adds some at the whole training split."""
    parts = WHOLE_LOOKS if whole else LOOKS
    coarse = max(1, config.steps // parts[scale])
    every = max(1, coarse // (LOOKS[scale] // parts[scale]))
    chosen: dict[str, Any] = {"every_steps": every, "layers": False, **monitor}
    if scale == "smoke":
        chosen["examples"] = 64
    if whole:
        chosen["whole_every_steps"] = every * max(1, coarse // every)
    return config.merged({"monitor": chosen})


def over_steps(runs: Sequence[Result], name: str) -> list[tuple[float, list[float]]]:
    """Step -> values of all seeds that have one, in the order of the steps."""
    found: dict[float, list[float]] = {}
    for step, value in (point for run in runs for point in run["series"].get(name, ())):
        found.setdefault(step, []).append(value)
    return sorted(found.items())


def line(
    axes: Any, runs: Sequence[Result], name: str, look: Mapping[str, Any], label: str, *, scale: float = 1.0
) -> None:
    """A metric over the steps, mean over seeds, one deviation as a band for several; few looks are marked."""
    points = over_steps(runs, name)
    if not points:
        return
    steps, values = [step for step, _ in points], [[scale * value for value in v] for _, v in points]
    means = [statistics.fmean(v) for v in values]
    marker = look.get("marker", "o") if len(steps) <= FEW_LOOKS else ""
    axes.plot(steps, means, linewidth=1.3, markersize=4, label=label, **{**look, "marker": marker})
    if any(len(v) > 1 for v in values):
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)


def groups(records: Results, key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, list[Result]]:
    """The seeds of each setting, by a key of their labels, in the order in which settings first come."""
    found: dict[Any, list[Result]] = {}
    for record in records:
        found.setdefault(key(record["labels"]), []).append(record)
    return found


def final(runs: Sequence[Result], name: str = SHARE) -> float:
    """The last value of a metric, mean over seeds."""
    return statistics.fmean(run["series"][name][-1][1] for run in runs)


def std(runs: Sequence[Result], name: str = SHARE) -> float | None:
    """Deviation of the last value over seeds; None for one."""
    return statistics.stdev(run["series"][name][-1][1] for run in runs) if len(runs) > 1 else None


def late(run: Result, name: str, share: float) -> list[float]:
    """Values of a metric after this share of the run."""
    points = run["series"].get(name, [])
    return [value for step, value in points if step >= share * run["steps"]]
