"""Runs that can be compared: one network, one data set, one length, one optimizer, with their dense runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from demp.report.groups import Dense, Group, groups_of
from demp.report.runs import Run, part


@dataclass
class World:
    """Runs that differ in method, setting and seed only."""

    name: str
    """resnet18 on cifar10, adamw."""
    runs: list[Run] = field(default_factory=list)

    @cached_property
    def groups(self) -> list[Group]:
        """Its settings."""
        return groups_of(self.runs)

    @cached_property
    def dense(self) -> Dense:
        """Its dense runs."""
        return Dense(self.runs)


def worlds_of(runs: Iterable[Run]) -> list[World]:
    """The largest first. A run that does not say what it trained stands with the others of its kind."""
    found: dict[tuple[object, ...], World] = {}
    for run in runs:
        about = (part(run, "model"), part(run, "data"), part(run, "optimizer"))
        world = found.setdefault((*about, run.value("parameters_dense"), run.steps), World(words(*about)))
        world.runs.append(run)
    return sorted(found.values(), key=lambda world: -len(world.runs))


def words(model: str, data: str, optimizer: str) -> str:
    """What was trained, on what, by what."""
    return ", ".join(one for one in (" on ".join(x for x in (model, data) if x), optimizer) if one)
