"""`demp sweep`: a grid of trainings, or a search among them, each done once."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from demp.cli.base import Budget, Command, Flag, Folder, Names, Number, Text
from demp.cli.overrides import listed, parse_lists, resolve
from demp.cli.sweeping import Sweeping, skipped_message
from demp.cli.tables import about, draw, widen
from demp.errors import UsageError
from demp.experiments.sweep import Store, Sweep, table
from demp.experiments.sweep.grid import Make, grid
from demp.experiments.sweep.search import Goal, Search, Space, front, read_range
from demp.files.results import DONE
from demp.train.config import TrainConfig
from demp.train.runfolder import write_text

Lists = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="KEY=[VALUE,...]", help_behavior_hint="(repeatable)"),
]
Spaces = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="KEY=RANGE", help_behavior_hint="(repeatable)"),
]
EXAMPLE = "--grid method.options.peak_strength=[0.001,0.01]"


@dataclass(frozen=True, kw_only=True)
class SweepCommand(Sweeping):
    """Train at every point of a grid, for several seeds: what is done stays done, what fails is a row; one table."""

    method: Text = ""
    """dense, demp, or another method."""
    budget: Budget = ""
    """What may be left, for example flops=0.4."""
    strength: Number = None
    """Peak strength of the penalty (lambda), without a budget."""
    noise: Number = None
    """Peak standard deviation of the noise (sigma)."""
    grid: Lists = ()
    """Values of a config key, a run for each; several keys are combined."""
    seeds: int = 1
    """Seeds at each point: 0, 1, ..."""
    search: Flag = False
    """Search with Optuna instead of a grid: each trial is chosen by what came out before."""
    search_space: Spaces = ()
    """Range of a config key: LOW:HIGH, log:LOW:HIGH, or choices in brackets."""
    trials: int = 20
    """Trials of the search, those made earlier among them."""
    aims: Names = "accuracy,flops"
    """What the search is for: accuracy, weight_sparsity, neuron_sparsity, flops, train_flops, train_seconds."""
    out: Folder = ""
    """Folder of the sweep; without it, one under runs/ that the same command finds again."""
    measure: Flag = False
    """Also time each network's step beside the dense one's."""

    def run(self) -> dict[str, Any]:
        """Make what is missing; write the table of all there is.

        Raises:
            UsageError: nothing is asked for, and the folder holds no run.
        """
        console = self.console()
        left = self._make(console) if self._asked() else 0
        store = Store(self._folder())
        records = store.records()
        if not self._asked() and not records:
            raise UsageError(f"there is nothing to sweep; name values, for example {EXAMPLE}, or seeds")
        best = self._show(console, store) if records else []
        if store.skipped():
            console.print(skipped_message(store.skipped()), markup=False, highlight=False)
        if left:
            console.print(f"{left} runs are left; the same command goes on")
        return {
            "out": str(store.path),
            "rows": [row.to_dict() for row in table.rows(records)],
            "front": best,
            "failed": sum(record["status"] != DONE for record in records),
            "left": left,
            "skipped": list(store.skipped()),
            "files": [str(store.table_file)] if records else [],
        }

    def _show(self, console: Console, store: Store) -> list[int]:
        """Print and write the table; the best trials of a search."""
        records, shared = store.records(), store.about()["shared"]
        best = front(records, shared["search"]["aims"]) if "search" in shared else []
        varied = {key for record in records for key in record["labels"]["setting"]}
        words = about(TrainConfig.from_dict(shared["base"]), varied)
        write_text(store.table_file, table.markdown(records, words, best))
        widen(console)
        columns = table.columns(table.rows(records), table.split_of(records), best)
        draw(console, columns, left=[heading for heading, _ in columns].index("seeds"))
        for text in (words, *table.failures(records), f"written: {store.table_file}"):
            console.print(text, markup=False, highlight=False)
        return best

    def _asked(self) -> bool:
        """Is there anything to do but to show what is there?"""
        quiet = {"out", *(field.name for field in fields(Command))}
        return any(getattr(self, field.name) != field.default for field in fields(self) if field.name not in quiet)

    def _folder(self) -> Path:
        if self.out:
            return Path(self.out)
        base = resolve(self)
        return Path(f"runs/sweep-{base.model.name}-{Path(base.data.name).name}".replace(":", "-"))

    def _make(self, console: Console) -> int:
        """Make what is missing; how much is still missing then."""

        def make(setting: Mapping[str, Any]) -> TrainConfig:
            return self.placed(resolve(self, setting))

        sweep = self._planned(make)
        whole = len(sweep.jobs) + sweep.left()
        done = whole - len(sweep.missing) - sweep.left()
        console.print(f"{whole} runs in {self._folder()}, {done} of them done before", highlight=False)
        return self.run_sweep(sweep, console).left

    def _planned(self, make: Make) -> Sweep:
        """The sweep that the flags ask for: a grid, or a search."""
        shared = {"base": make({}).merged({"seed": 0, "out": ""}).to_dict()}
        if not (self.search or self.search_space):
            jobs = grid(make, parse_lists(self.grid, EXAMPLE), seeds=self.seeds, measure=self.measure)
            return Sweep(self._folder(), jobs, shared=shared, retry=self.retry)
        if self.grid or self.retry:
            raise UsageError("a search has no --grid and no --retry; give --search-space, and more --trials")
        return Search(
            self._folder(),
            make,
            space_of(self.search_space),
            Goal(aims=listed(self.aims), trials=self.trials, seeds=self.seeds),
            shared=shared,
            measure=self.measure,
        )


def space_of(settings: tuple[str, ...]) -> Space:
    """KEY=LOW:HIGH, KEY=log:LOW:HIGH and KEY=[VALUE,...] by key."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, _, text = (part.strip() for part in setting.partition("="))
        found[key] = parse_lists([setting], "")[key] if text.startswith("[") else read_range(key, text)
    return found
