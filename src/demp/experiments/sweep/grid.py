"""Which trainings a grid consists of: every combination of values of config keys, for every seed."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from demp.errors import UsageError
from demp.experiments.sweep.cells import text
from demp.experiments.sweep.job import Job, name_of
from demp.experiments.sweep.training import training
from demp.files.checks import check_at_least
from demp.train import TrainConfig

NOT_SWEPT = {"seed": "--seeds", "out": "--out", "device": "--devices"}
"""Config keys with a place of their own."""

Make = Callable[[Mapping[str, Any]], TrainConfig]
"""The config at one point of a grid, from values by dotted key."""


def grid(make: Make, axes: Mapping[str, Sequence[Any]], *, seeds: int = 1, measure: bool = False) -> list[Job]:
    """Return all trainings, seed by seed, so that what is done can be compared; the last key varies fastest.

    ``measure`` also times each network's step beside the dense network's.

    Raises:
        UsageError: a key without values, one that is no config key, or a value that does not fit.
    """
    check_at_least("seeds", seeds, 1)
    for key, values in axes.items():
        validate_key(key)
        if not values:
            raise UsageError(f"the grid of {key} has no values; write for example {key}=[0.001, 0.01]")
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [point(make, setting, seed, measure=measure) for seed in range(seeds) for setting in points]


def point(make: Make, setting: Mapping[str, Any], seed: int, *, measure: bool = False) -> Job:
    """Return the training with these values and this seed."""
    config = make(setting).merged({"seed": seed, "out": ""})
    labels = {"method": config.method.name, "setting": dict(setting), "seed": seed}
    short = shortened(list(setting))
    parts = [f"{short[key]}={text(value)}" for key, value in setting.items()]
    return training(name_of(*(parts or [config.method.name]), f"s{seed}"), config, labels=labels, beside_dense=measure)


def validate_key(key: str) -> None:
    """Make sure that a key may be swept in a grid.

    Raises:
        UsageError: it has a flag of its own.
    """
    if key in NOT_SWEPT:
        raise UsageError(f"{key} cannot be swept here; use {NOT_SWEPT[key]}")


def shortened(keys: Sequence[str]) -> dict[str, str]:
    """Return short names of keys: peak_strength, optimizer; the whole key where two would be the same."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
