"""`demp compare`: several methods on one budget, dense beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from demp.cli.base import Folder, Names
from demp.cli.overrides import listed, parse_settings, resolve
from demp.cli.sweeping import Sweeping, skipped_message
from demp.cli.tables import about, draw, widen
from demp.errors import UsageError
from demp.experiments.compare import Comparison, figure, plan, table
from demp.experiments.compare.missed import missed, no_budget, without_budget
from demp.experiments.compare.opponents import longer_of, raise_if_opponents_given, twins_of
from demp.experiments.compare.plan import NO_BUDGET, Options, Planned
from demp.experiments.sweep import Store
from demp.files.results import DONE
from demp.train.config import TrainConfig
from demp.train.runfolder import write_text

Numbers = Annotated[str, tyro.conf.arg(metavar="NUMBER,NUMBER", help_behavior_hint="")]
Budgets = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="RESOURCE=NUMBER", help_behavior_hint="(repeatable)"),
]
MethodOptions = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="METHOD.KEY=VALUE", help_behavior_hint="(repeatable)"),
]


@dataclass(frozen=True, kw_only=True)
class Compare(Sweeping):
    """Train several methods with the same weights, images and steps, dense beside them; one table, one figure."""

    methods: Names = ""
    """Methods; without them, the table and figure of what the folder holds already."""
    budget: Budgets = ()
    """What may be left, for every method that has a target: flops=0.4; several: a run for each. A narrow network from
    scratch of the same budget is always among the runs."""
    twin: Names = ""
    """Methods whose final shapes are also trained from scratch, beside them."""
    longer: Names = ""
    """Methods beside which a narrow network of their budget trains for as many training FLOPs as they took."""
    target: Numbers = ""
    """Target sparsities: of neurons or of weights, as each method has it."""
    strengths: Numbers = ""
    """Peak strengths of demp, which then has no target."""
    seeds: int = 1
    """Seeds per method and setting: 0, 1, ..."""
    option: MethodOptions = ()
    """Option of one method, or of all that have it (*.KEY=VALUE); a list in brackets is a run for each."""
    out: Folder = ""
    """Folder of the comparison; without it, one under runs/ that the same command finds again."""

    def run(self) -> dict[str, Any]:
        """Make what is missing; write table and figure of all there is.

        Raises:
            UsageError: no methods are named, and the folder holds no run.
        """
        console = self.console()
        base = resolve(self)
        out = Path(self.out or f"runs/compare-{base.model.name}-{Path(base.data.name).name}".replace(":", "-"))
        left = self._make(base, out, console) if self.methods else 0
        store = Store(out)
        records = store.records()
        if not records:
            if self.methods:
                console.print(f"no run has ended yet; {left} are left; the same command goes on")
                return {"out": str(out), "rows": [], "failed": 0, "left": left, "files": []}
            raise UsageError("there is nothing to compare; name methods: --methods demp,snap,rigl")
        shared = about(TrainConfig.from_dict(store.about()["shared"]))
        write_text(store.table_file, table.markdown(records, shared))
        files = [store.table_file, *figure.write(records, out)]
        show(console, records)
        warnings = [*missed(records), *without_budget(records)]
        for text in (
            shared,
            *table.failures(records),
            *(f"warning: {text}" for text in missed(records)),
            f"written: {', '.join(map(str, files))}",
        ):
            console.print(text, markup=False, highlight=False)
        if store.skipped():
            console.print(skipped_message(store.skipped()), markup=False, highlight=False)
        if left:
            console.print(f"{left} runs are left; the same command goes on")
        return {
            "out": str(out),
            "rows": [vars(row) for row in table.rows(records)],
            "failed": sum(record["status"] != DONE for record in records),
            "left": left,
            "warnings": warnings,
            "skipped": list(store.skipped()),
            "files": [str(file) for file in files],
        }

    def _make(self, base: TrainConfig, out: Path, console: Console) -> int:
        """Make what is missing of the plan; how much is still missing then."""
        runs = plan(
            base,
            listed(self.methods),
            seeds=self.seeds,
            targets=numbers("target", self.target),
            strengths=numbers("strengths", self.strengths),
            budgets=self.budget,
            options=method_options(self.option),
        )
        for name in dict.fromkeys(run.method for run in runs if run.setting.get("budget") == NO_BUDGET):
            console.print(f"warning: {no_budget(name)}", highlight=False)
        twin, longer = listed(self.twin), listed(self.longer)
        raise_if_opponents_given(runs, twin, longer)
        left = self._go(base, out, runs, console)
        if twins := twins_of(runs, Store(out), twin):
            left += self._go(base, out, twins, console)
        if narrow := longer_of(runs, Store(out), longer):
            left += self._go(base, out, narrow, console)
        return left

    def _go(self, base: TrainConfig, out: Path, runs: list[Planned], console: Console) -> int:
        """Make these runs; how many are left."""
        comparison = Comparison(out, self.placed(base), runs, retry=self.retry)
        done = len(runs) - len(comparison.missing)
        console.print(f"{len(runs)} runs in {out}, {done} of them done before", highlight=False)
        return self.run_sweep(comparison, console).left


def numbers(name: str, text: str) -> list[float]:
    """Parse numbers separated by commas: "0.3,0.5" becomes [0.3, 0.5].

    Raises:
        UsageError: one of them is no number.
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--{name} is {text!r}; give numbers with commas between them, for example 0.3,0.5") from None


def method_options(settings: tuple[str, ...]) -> Options:
    """METHOD.KEY=VALUE pairs, by method and key.

    Raises:
        UsageError: one of them is not of that form.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        ((path, value),) = parse_settings([setting]).items()
        method, dot, key = path.partition(".")
        if not (method and dot and key):
            raise UsageError(f"{setting!r} is not METHOD.KEY=VALUE; write for example rigl.distribution=erk")
        found.setdefault(method, {})[key] = value
    return found


def show(console: Console, records: table.Results) -> None:
    """The table; on a narrow screen the main columns of it."""
    wide = widen(console)
    rows, split = table.rows(records), table.split_of(records)
    columns = [column for column in table.COLUMNS if column[2] or wide]
    draw(console, [(heading.format(split=split), [cell(row) for row in rows]) for heading, cell, _ in columns], left=2)
