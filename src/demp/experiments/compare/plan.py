"""Which runs a comparison consists of: dense, and every method at each of its settings, for every seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product, zip_longest
from typing import Any

from demp import methods
from demp.budgets import Budget
from demp.errors import UsageError
from demp.experiments.sweep import Job, name_of, training
from demp.experiments.sweep.cells import text
from demp.files.checks import check_at_least
from demp.train.config import DENSE, TrainConfig

TARGETS = ("weight_sparsity", "target_neuron_sparsity")
"""What a target sparsity is called in the config of a method; the first that it has is meant."""
STRENGTH = "peak_strength"
BUDGET = "budget"
NO_BUDGET = "none"
"""In a setting: the comparison has budgets, and the method knows none. No part of the config."""
NARROW = "narrow"
"""The opponent that trains from scratch; always among methods on a budget."""
EVERY = "*"
"""In place of a method's name: options for every method that has them."""

Options = Mapping[str, Mapping[str, Any]]
"""Method, or ``*`` -> option -> value; a list of values is a run for each."""


@dataclass(frozen=True)
class Planned:
    """One run to be made."""

    name: str
    """Of its folder; unique in a comparison."""
    method: str
    setting: dict[str, Any]
    """Every option that was given for this method, ``{}`` for dense."""
    seed: int
    config: TrainConfig

    def job(self) -> Job:
        """The same for a sweep; a pruned network's step is measured beside the dense one's."""
        labels = {"method": self.method, "setting": self.setting, "seed": self.seed}
        return training(self.name, self.config, labels=labels, beside_dense=self.method != DENSE)


def plan(
    base: TrainConfig,
    names: Sequence[str],
    *,
    seeds: int = 1,
    targets: Sequence[float] = (),
    strengths: Sequence[float] = (),
    budgets: Sequence[str] = (),
    options: Options | None = None,
) -> list[Planned]:
    """All runs, dense first and seed by seed, so that what is done at any time can be compared.

    ``base`` holds all that the runs share; its own method's options go to that method and its combinations.

    Raises:
        UsageError: an unknown method or option, a target outside (0, 1) or for a method without one, or no method.
    """
    names = [name for name in dict.fromkeys(names) if name != DENSE]
    if not names:
        raise UsageError("there is nothing to compare; name methods, for example --methods demp,snap,rigl")
    check_at_least("seeds", seeds, 1)
    for target in targets:
        if not 0 < target < 1:
            raise UsageError(f"target is {target:g}; give shares in (0, 1), for example --target 0.3,0.5,0.7")
    for name in names:
        methods.find(name)
    given = dict(options or {})
    raise_if_unknown(given, names)
    aims = Aims(tuple(targets), tuple(strengths), tuple(Budget.parse(text).text() for text in budgets))
    aims.raise_if_targets_and_budgets()
    if aims.budgets and not any(methods.find(name).takes_budget for name in names):
        raise UsageError(
            f"{names[0]} has no target, so it cannot land on a budget; add a method that can, for example demp, or "
            "leave --budget out"
        )
    if aims.budgets and NARROW not in names:
        names = [NARROW, *names]
    settings = {name: list(settings_of(name, aims, given)) for name in names}
    raise_if_unused_strengths(strengths, names)
    found = []
    for seed in range(seeds):
        found.append(planned(base, DENSE, {}, seed))
        for row in zip_longest(*settings.values()):
            chosen = zip(settings, row, strict=True)
            found += [planned(base, name, one, seed) for name, one in chosen if one is not None]
    return found


def planned(base: TrainConfig, method: str, setting: dict[str, Any], seed: int) -> Planned:
    """One run; its config is checked here."""
    own = {} if method == DENSE else shared_options(base, method)
    given = {key: value for key, value in setting.items() if (key, value) != (BUDGET, NO_BUDGET)}
    values = {"name": method, "options": {**own, **given}}
    config = base.merged({"method": {"name": DENSE}, "seed": seed, "out": ""}).merged({"method": values})
    parts = [method, *(f"{name}={text(value)}" for name, value in setting.items()), f"s{seed}"]
    return Planned(name_of(*parts), method, setting, seed, config)


def shared_options(base: TrainConfig, method: str) -> dict[str, Any]:
    """The options of the base's own method that this method, the same or a combination with it, knows."""
    if base.method.name not in method.split("+"):
        return {}
    known = knobs(method)
    return {name: value for name, value in base.method.options.items() if name in known}


@dataclass(frozen=True)
class Aims:
    """What the methods are compared at."""

    targets: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()
    budgets: tuple[str, ...] = ()

    def raise_if_targets_and_budgets(self) -> None:
        """Let only one of targets and budgets say how much may be left.

        Raises:
            UsageError: both do.
        """
        if self.targets and self.budgets:
            raise UsageError("--target and --budget both say how much may be left; give one of them")


def settings_of(name: str, aims: Aims, options: Options) -> Iterator[dict[str, Any]]:
    """Every setting of one method. One value is listed like several: later commands may add runs beside these.

    Raises:
        UsageError: targets are asked for, and the method has none.
    """
    known = knobs(name)
    chosen = {k: v for k, v in options.get(EVERY, {}).items() if k in known} | dict(options.get(name, {}))
    several = any(isinstance(value, (list, tuple)) for value in chosen.values())
    axes = {option: value if isinstance(value, (list, tuple)) else [value] for option, value in chosen.items()}
    targets, strengths = aims.targets, aims.strengths
    by_strength = is_demp(name) and bool(strengths) and not aims.budgets
    target = next((field for field in TARGETS if field in known), None)
    if aims.budgets and BUDGET not in chosen:
        takes = methods.find(name).takes_budget
        axes = {BUDGET: list(aims.budgets) if takes else [NO_BUDGET], **axes}
    if by_strength:
        axes.setdefault(STRENGTH, list(strengths))
        target = target if target == TARGETS[0] else None
    if targets and target is not None and target not in chosen:
        axes = {target: list(targets), **axes}
    elif targets and not (several or by_strength or set(TARGETS) & axes.keys()):
        raise UsageError(
            f"{name} has no target sparsity; give the knob that drives it, as in --option {name}.OPTION=[0.01,0.1] "
            f"(its options: {', '.join(sorted(known))}), or leave it out"
        )
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def raise_if_unknown(options: Options, names: Sequence[str]) -> None:
    """Refuse options of a method that is not compared, or that no method knows.

    Raises:
        UsageError: there is one.
    """
    for method, values in options.items():
        if method not in (*names, EVERY):
            raise UsageError(f"option {method}.{next(iter(values))} is for a method that is not among --methods")
        known = set().union(*(knobs(name) for name in (names if method == EVERY else (method,))))
        for option in values.keys() - known:
            raise UsageError(f"{method} has no option {option!r}; it has {', '.join(sorted(known))}")


def raise_if_unused_strengths(strengths: Sequence[float], names: Sequence[str]) -> None:
    """Refuse strengths where no method is DemP.

    Raises:
        UsageError: there are some.
    """
    if strengths and not any(is_demp(name) for name in names):
        raise UsageError(
            "--strengths are peak strengths of demp, which is not among --methods; add it, or leave them out"
        )


def is_demp(name: str) -> bool:
    """DemP, alone or with another method."""
    return "demp" in name.split("+")


def knobs(name: str) -> set[str]:
    """Names of the options that a method's config has."""
    return {field.name for field in fields(methods.config_class(name))}


def words(setting: Mapping[str, Any]) -> str:
    """A setting as a reader wants it: the target's name is clear from the method."""
    short = {TARGETS[0]: "weights", TARGETS[1]: "neurons", STRENGTH: "strength", BUDGET: "at most"}
    return ", ".join(
        "without a budget" if (name, value) == (BUDGET, NO_BUDGET) else f"{short.get(name, name)} {text(value)}"
        for name, value in setting.items()
    )
