"""A search for good settings, with Optuna: which to try next depends on what came out, several aims at once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.sweep.cells import mean
from demp.experiments.sweep.grid import Make, point, validate_key
from demp.experiments.sweep.job import Job
from demp.experiments.sweep.store import drop_unfinished
from demp.experiments.sweep.sweep import Outcome, Sweep
from demp.experiments.sweep.table import NUMBERS
from demp.files.checks import check_at_least, check_choice
from demp.files.results import DONE, Result
from demp.train.extras import need

WHAT = "a search"
AIMS = {
    "accuracy": "maximize",
    "weight_sparsity": "maximize",
    "neuron_sparsity": "maximize",
    "flops": "minimize",
    "train_flops": "minimize",
    "train_seconds": "minimize",
}
"""What can be searched for: numbers of a sweep's table."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    """Even in the logarithm."""


Space = Mapping[str, Range | Sequence[Any]]
"""Config key -> a range, or values to choose from."""


def read_range(key: str, text: str) -> Range:
    """Read ``LOW:HIGH`` or ``log:LOW:HIGH``; whole numbers stay whole.

    Raises:
        UsageError: it is neither, or holds no number.
    """
    *kind, low, high = text.split(":") if text.count(":") else ["", "", ""]
    try:
        ends = [int(end) if end.strip().lstrip("-").isdecimal() else float(end) for end in (low, high)]
    except ValueError:
        ends = []
    if len(ends) != 2 or kind not in ([], ["log"]):
        raise UsageError(f"{key}={text} is no range; write {key}=log:1e-4:1e-1, {key}=0.1:0.9 or {key}=[a,b]")
    if not ends[0] < ends[1] or (kind and ends[0] <= 0):
        raise UsageError(f"{key}={text} is empty; give a first end below the second{', and above 0' if kind else ''}")
    return Range(*ends, log=bool(kind))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a search is for, and how long it goes on."""

    aims: Sequence[str]
    """Of `AIMS`, in the order in which trials have their values."""
    trials: int
    """Settings that are tried, those tried earlier among them."""
    seeds: int = 1
    """Trainings of each setting; its values are their means."""

    def __post_init__(self) -> None:
        for aim in self.aims:
            check_choice("aims", aim, AIMS)
        if not self.aims or len(set(self.aims)) < len(self.aims):
            raise UsageError(f"aims are {', '.join(self.aims) or 'none'}; give one or more, each once")
        check_at_least("trials", self.trials, 1)
        check_at_least("seeds", self.seeds, 1)


class Search(Sweep):
    """Trials in one folder, each a training per seed; its journal is beside them.

    ``make`` gives the config at a point, as in a grid. A trial whose run fails has failed and is not tried again.
    """

    def __init__(
        self,
        path: str | Path,
        make: Make,
        space: Space,
        goal: Goal,
        *,
        shared: Mapping[str, Any] | None = None,
        measure: bool = False,
    ) -> None:
        validate_space(space)
        self.optuna = need("optuna", "search")
        self.make, self.space, self.goal = make, dict(space), goal
        self.measure, self._known = measure, set[int]()
        about: dict[str, Any] = {"space": {key: written(value) for key, value in space.items()}}
        about |= {"aims": list(goal.aims), "seeds": goal.seeds}
        super().__init__(path, [], what=WHAT, shared={**(shared or {}), "search": about})

    def find_missing(self) -> list[Job]:
        """Return the jobs of all trials that were chosen and have no result yet."""
        self._discover()
        self.settle()
        return super().find_missing()

    @cached_property
    def study(self) -> Any:
        """The study in the journal.

        Raises:
            UsageError: the journal is damaged, or of another space.
        """
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        journal = need("optuna.storages.journal", "search")
        file = self.store.journal_file
        lock = journal.JournalFileOpenLock(str(file))
        lock.acquire()
        try:
            drop_unfinished(file)
        finally:
            lock.release()
        backend = journal.JournalFileBackend(str(file), lock_obj=journal.JournalFileOpenLock(str(file)))
        try:
            storage = self.optuna.storages.JournalStorage(backend)
        except Exception as error:  # Optuna raises whatever the lines bring about
            raise damaged(file, type(error).__name__) from error
        directions = [AIMS[aim] for aim in self.goal.aims]
        try:
            create = self.optuna.create_study
            study = create(storage=storage, study_name="demp", directions=directions, load_if_exists=True)
            foreign = [trial.number for trial in study.trials if not fits(trial.params, self.space)]
        except Exception as error:  # Optuna raises whatever the lines bring about
            raise damaged(file, type(error).__name__) from error
        if foreign:
            raise damaged(file, f"trial {foreign[0]} is outside of the space")
        seed = int.from_bytes(os.urandom(4)) if study.trials else 0  # the trials of the first command can be repeated
        study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        return study

    def on_gpu(self) -> bool:
        """Return whether the jobs need a GPU."""
        return self.make({}).device.startswith("cuda")

    def _distributions(self) -> dict[str, Any]:
        make = self.optuna.distributions
        found: dict[str, Any] = {}
        for key, value in self.space.items():
            if not isinstance(value, Range):
                found[key] = make.CategoricalDistribution(tuple(value))
            elif isinstance(value.low, int) and isinstance(value.high, int):
                found[key] = make.IntDistribution(value.low, value.high, log=value.log)
            else:
                found[key] = make.FloatDistribution(value.low, value.high, log=value.log)
        return found

    def _trials(self) -> list[Any]:
        """Return the trials that count and have all their values: a process may have died while it chose one."""
        return [
            t for t in self.study.get_trials(deepcopy=False)[: self.goal.trials] if t.params.keys() == self.space.keys()
        ]

    def _discover(self) -> list[Job]:
        """Return the jobs of trials that were chosen and not known yet, and add them to all jobs."""
        found: list[Job] = []
        for trial in self._trials():
            if trial.number not in self._known:
                self._known.add(trial.number)
                found += self._jobs(trial)
        self.jobs += found
        return found

    def _jobs(self, trial: Any) -> list[Job]:
        """Return the trainings of a trial."""
        jobs = [point(self.make, trial.params, seed, measure=self.measure) for seed in range(self.goal.seeds)]
        stem = f"trial{trial.number:04d}"
        return [
            Job(
                name=f"{stem}-s{seed}",
                work=job.work,
                arguments=job.arguments,
                labels={**job.labels, "trial": trial.number},
            )
            for seed, job in enumerate(jobs)
        ]

    def left(self) -> int:
        """Return the number of trainings of trials that are still to be chosen."""
        return self.goal.seeds * max(0, self.goal.trials - len(self.study.get_trials(deepcopy=False)))

    def more(self) -> list[Job]:
        """Tell the study what came out, let it choose a trial, and return its jobs."""
        self.settle()
        if self.left():
            self.study.ask(self._distributions())
        return self._discover()

    def go(self, **options: Any) -> Outcome:
        """Do what is missing, as `Sweep.go`, and tell the study of all that ended."""
        try:
            return super().go(**options)
        finally:
            self.settle()

    def settle(self) -> None:
        """Tell the study of trials whose runs have all ended."""
        states = self.optuna.trial.TrialState
        for trial in self._trials():
            if trial.state == states.RUNNING:
                ended = list(self.store.of(self._jobs(trial)).values())
                failed = any(record["status"] != DONE for record in ended)
                if failed:
                    self.study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
                elif len(ended) == self.goal.seeds:
                    self.study.tell(trial.number, values=values_of(ended, self.goal.aims), skip_if_finished=True)


def damaged(file: Path, why: str) -> UsageError:
    """Return the error about a journal that is not as Optuna wrote it."""
    return UsageError(f"{file} is damaged ({why}); restore it, or give another folder with --out")


def fits(values: Mapping[str, Any], space: Space) -> bool:
    """Return whether these are values of the space, as far as they are chosen yet."""
    for key, value in values.items():
        within = space.get(key)
        if isinstance(within, Range):
            if not isinstance(value, int | float) or not within.low <= value <= within.high:
                return False
        elif within is None or value not in within:
            return False
    return True


def validate_space(space: Space) -> None:
    """Make sure that a space can be searched.

    Raises:
        UsageError: it is empty, or has a key or a choice that cannot be searched.
    """
    if not space:
        raise UsageError("there is nothing to search; give --search-space method.options.peak_strength=log:1e-4:1e-1")
    for key, value in space.items():
        validate_key(key)
        if not isinstance(value, Range) and not all(isinstance(one, (str, int, float)) for one in value or [None]):
            raise UsageError(f"the choices of {key} are {list(value)}; give texts, numbers, true or false")


def written(value: Range | Sequence[Any]) -> Any:
    """Return a part of a space as a file has it."""
    return vars(value) if isinstance(value, Range) else list(value)


def values_of(records: Sequence[Result], aims: Sequence[str]) -> list[float]:
    """Return the mean over seeds of each aim."""
    return [mean([NUMBERS[aim](record) for record in records]) or 0.0 for aim in aims]


def front(records: Sequence[Result], aims: Sequence[str]) -> list[int]:
    """Return the trials that no other beats in one aim without losing in another."""
    groups: dict[int, list[Result]] = {}
    for record in records:
        groups.setdefault(record["labels"]["trial"], []).append(record)
    signs = [1 if AIMS[aim] == "maximize" else -1 for aim in aims]
    points = {
        trial: [sign * value for sign, value in zip(signs, values_of(group, aims), strict=True)]
        for trial, group in groups.items()
        if all(record["status"] == DONE for record in group)
    }
    return sorted(trial for trial, mine in points.items() if not any(beats(other, mine) for other in points.values()))


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one is at least as good in all aims and better in one."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)
