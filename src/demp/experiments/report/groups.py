"""Runs that differ in nothing but their seed, and what they come to on average."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from demp.experiments.report.results import words
from demp.experiments.report.runs import ReportedRun
from demp.files.results import DONE, FAILED
from demp.files.run import ACCURACY, DENSE

Value = Callable[[ReportedRun], float | None]
POINT = 0.01
"""A setting counts as good as dense within so much accuracy: one point."""


@dataclass
class RunGroup:
    """One method at one setting."""

    method: str
    setting: str
    runs: list[ReportedRun]

    @property
    def name(self) -> str:
        """Return method and setting as one name: "demp, strength 0.02"."""
        return f"{self.method}, {self.setting}" if self.setting else self.method

    @property
    def done(self) -> list[ReportedRun]:
        """The runs that reached their last step, one per seed."""
        return [run for run in self.runs if run.status == DONE]

    @property
    def failed(self) -> int:
        """How many runs, one per seed, ended with an error."""
        return sum(run.status == FAILED for run in self.runs)

    def values(self, value: Value) -> list[float]:
        """The value of every finished run that has one."""
        return [found for run in self.done if (found := value(run)) is not None]

    def mean(self, value: Value) -> float | None:
        """Return the mean of a value over seeds, None without any value."""
        values = self.values(value)
        return statistics.fmean(values) if values else None

    def std(self, value: Value) -> float | None:
        """Sample deviation over seeds; None for fewer than two."""
        values = self.values(value)
        return statistics.stdev(values) if len(values) > 1 else None


def groups_of(runs: Iterable[ReportedRun]) -> list[RunGroup]:
    """Dense first, then in the order in which methods and settings first came."""
    runs = list(runs)
    known, found = telling(runs), dict[tuple[str, str], RunGroup]()
    for run in runs:
        key = (run.method, setting_of(run, known))
        found.setdefault(key, RunGroup(*key, [])).runs.append(run)
    order = list(dict.fromkeys(method for method, _ in found))
    return sorted(found.values(), key=lambda group: (group.method != DENSE, order.index(group.method)))


def telling(runs: list[ReportedRun]) -> set[str]:
    """Labels that differ between runs of one method; the others add nothing to the method's name."""
    values: dict[tuple[str, str], set[str]] = {}
    for name in {name for run in runs for name in run.labels}:
        for run in runs:
            values.setdefault((run.method, name), set()).add(repr(run.labels.get(name)))
    return {name for (_, name), seen in values.items() if len(seen) > 1} | {"setting"}


def setting_of(run: ReportedRun, known: set[str] | None = None) -> str:
    """All labels but the method, of those that are ``known``; the values of ``setting`` stand for themselves."""
    flat = {}
    for name, value in run.labels.items():
        if name == "method" or not (known is None or name in known):
            continue
        if name == "setting" and isinstance(value, dict):
            flat |= value
        elif not isinstance(value, dict | list) and value not in ("", None):
            flat[name] = value
    return words(flat)


def accuracy(run: ReportedRun) -> float | None:
    """On the whole test set, at the end."""
    return run.value(ACCURACY)


def sparsity(run: ReportedRun) -> float | None:
    """Weights removed, and those that a mask holds at zero."""
    removed = run.value("weight_sparsity")
    if removed is None and (left := run.share("parameters")) is not None:
        removed = 1 - left
    return None if removed is None else removed + (run.value("masked_share") or 0.0)


def share(name: str) -> Value:
    """A number over the dense network's."""
    return lambda run: run.share(name)


def tested(group: RunGroup) -> float | None:
    """Images of the test set; None in files that do not say so."""
    return group.mean(plain("test_images"))


def plain(name: str) -> Value:
    """A function that returns this field of a run as it was recorded."""
    return lambda run: run.value(name)


class Dense:
    """The dense runs among the others: what their accuracy is compared with, and their times."""

    def __init__(self, runs: Iterable[ReportedRun]) -> None:
        self.runs = [run for run in runs if run.method == DENSE and run.status == DONE]
        self._by_seed = {run.seed: run for run in self.runs}

    @property
    def accuracies(self) -> list[float]:
        """Return the accuracy of every dense run that has one."""
        return [value for run in self.runs if (value := accuracy(run)) is not None]

    @property
    def accuracy(self) -> float | None:
        """Return the mean accuracy of the dense runs, None without any."""
        return statistics.fmean(self.accuracies) if self.runs and self.accuracies else None

    def over(self, run: ReportedRun, name: str) -> float | None:
        """A measured time over that of the dense run of the same seed and machine."""
        twin = self._by_seed.get(run.seed)
        if twin is None or not twin.machine or twin.machine != run.machine or run.machine == "several machines":
            return None
        mine, theirs = run.value(name), twin.value(name)
        return mine / theirs if mine is not None and theirs else None

    def step_ratio(self, run: ReportedRun) -> float | None:
        """A training step over the dense network's: side by side where measured so, else late in both runs."""
        return run.value("step_over_dense") or self.over(run, "step_ms_at_end")


def best(groups: list[RunGroup], dense: Dense) -> RunGroup | None:
    """The setting with the fewest parameters within one point of dense; without any, the most accurate one.

    Without dense runs the most accurate one.
    """
    scored = [group for group in groups if group.method != DENSE and group.mean(accuracy) is not None]
    sized = [group for group in scored if group.mean(share("parameters")) is not None]
    if dense.accuracy is not None:
        limit = dense.accuracy - POINT
        good = [group for group in sized if (group.mean(accuracy) or 0) >= limit]
        smaller = [group for group in good if (group.mean(share("parameters")) or 1) < 1]
        if smaller:
            return min(smaller, key=lambda group: group.mean(share("parameters")) or 1)
    return max(scored, key=lambda group: group.mean(accuracy) or 0, default=None)
