"""What a user would do instead of a finished run: its final shapes, or a narrow network for as much training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from demp.errors import UsageError
from demp.experiments.compare.plan import BUDGET, NARROW, NO_BUDGET, Planned
from demp.experiments.sweep import Store, name_of
from demp.files.results import DONE
from demp.train.config import DENSE

TWIN = "twin"
LONGER = "narrow, longer"
"""What the table calls a narrow network that trains for more steps."""


def raise_if_opponents_given(runs: Sequence[Planned], twin: Sequence[str], longer: Sequence[str]) -> None:
    """Check, before anything is trained, that these methods can have a twin and a narrow network that trains longer.

    Raises:
        UsageError: a name that is not among the methods, or one without the budget that a narrow network needs.
    """
    known = {run.method for run in runs} - {DENSE}
    for option, names in (("--twin", twin), ("--longer", longer)):
        for name in names:
            if name not in known:
                rest = ", ".join(sorted(known)) or "none"
                raise UsageError(f"{option} names {name!r}, which is not among the methods compared ({rest})")
    if NARROW in longer:
        raise UsageError("--longer names narrow itself; name the methods whose training FLOPs it is to have")
    beside = {(run.seed, run.setting.get(BUDGET)) for run in runs if run.method == NARROW}
    for run in runs:
        budget = run.setting.get(BUDGET, NO_BUDGET)
        if run.method in longer and (budget == NO_BUDGET or (run.seed, budget) not in beside):
            raise UsageError(
                f"--longer needs a narrow network of the budget of {run.method}, and there is none; give a method that "
                "can land on a budget, with --budget, or leave --longer out"
            )


def twins_of(runs: Sequence[Planned], store: Store, whose: Sequence[str]) -> list[Planned]:
    """The twins of all runs of these methods that are done: their final shapes from scratch, same steps and seed."""
    found = []
    for run, _ in done(runs, store, whose):
        dense = run.config.merged({"method": {"name": DENSE, "options": {}}})
        config = dense.merged({"method": {"name": TWIN, "options": {"like": str(store.runs / run.name)}}})
        found.append(Planned(name_of(TWIN, run.name), TWIN, {"of": run.method, **run.setting}, run.seed, config))
    return found


def longer_of(runs: Sequence[Planned], store: Store, whose: Sequence[str]) -> list[Planned]:
    """For every run of these methods that is done: a narrow network of its budget, for as many training FLOPs.

    It is the narrow run of the same budget and seed, for its steps times what the method spent over what that spent;
    where that is not done, there is none.
    """
    narrow = {(run.seed, run.setting.get(BUDGET)): (run, record) for run, record in done(runs, store, [NARROW])}
    found = []
    for run, record in done(runs, store, whose):
        if (run.seed, run.setting[BUDGET]) not in narrow:
            continue
        beside, its = narrow[run.seed, run.setting[BUDGET]]
        steps = round(beside.config.steps * record["train_flops"] / its["train_flops"])
        config = beside.config.merged({"steps": steps})
        setting = {"for the training FLOPs of": run.method, **run.setting}
        found.append(Planned(name_of("longer", run.name), LONGER, setting, run.seed, config))
    return found


def done(runs: Sequence[Planned], store: Store, whose: Sequence[str]) -> Iterator[tuple[Planned, Mapping[str, Any]]]:
    """The finished runs of these methods, with their results."""
    records = {record["name"]: record for record in store.records() if record["status"] == DONE}
    yield from ((run, records[run.name]) for run in runs if run.method in whose and run.name in records)
