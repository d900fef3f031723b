"""Runs that can be compared: one network, one data set, one length, one optimizer, with their dense runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from demp.experiments.report.groups import Dense, RunGroup, groups_of
from demp.experiments.report.runs import ReportedRun, part


@dataclass
class ComparableRuns:
    """Runs that differ in method, setting and seed only."""

    name: str
    """resnet18 on cifar10, adamw."""
    runs: list[ReportedRun] = field(default_factory=list)

    @cached_property
    def groups(self) -> list[RunGroup]:
        """Return the runs grouped by method and setting."""
        return groups_of(self.runs)

    @cached_property
    def dense(self) -> Dense:
        """The dense runs among the runs that can be compared."""
        return Dense(self.runs)


def comparable_runs(runs: Iterable[ReportedRun]) -> list[ComparableRuns]:
    """Return the sets of runs that can be compared, the largest first.

    A run that does not say what it trained is in one set with the others that do not.
    """
    found: dict[tuple[object, ...], ComparableRuns] = {}
    for run in runs:
        about = (part(run, "model"), part(run, "data"), part(run, "optimizer"))
        same = found.setdefault((*about, run.value("parameters_dense"), run.steps), ComparableRuns(title(*about)))
        same.runs.append(run)
    return sorted(found.values(), key=lambda same: -len(same.runs))


def title(model: str, data: str, optimizer: str) -> str:
    """Return in words what was trained, on what, by what."""
    return ", ".join(one for one in (" on ".join(x for x in (model, data) if x), optimizer) if one)
