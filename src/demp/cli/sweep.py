"""`demp sweep`: a grid of trainings, or a search among them, each done once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from demp.cli.base import Command, Flag, Folder, Number, Text, Training
from demp.cli.overrides import parse_lists, resolve
from demp.cli.tables import about, draw, widen
from demp.errors import UsageError
from demp.records import DONE
from demp.sweep import Store, Sweep, table
from demp.sweep.devices import kind_of
from demp.sweep.grid import grid
from demp.train.config import TrainConfig
from demp.train.run import resolve_device
from demp.train.runfolder import write_text

Lists = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="KEY=[VALUE,...]", help_behavior_hint="(repeatable)"),
]
Names = Annotated[str, tyro.conf.arg(metavar="NAME,NAME", help_behavior_hint="")]
EXAMPLE = "--grid method.options.peak_strength=[0.001,0.01]"


@dataclass(frozen=True, kw_only=True)
class SweepCommand(Training):
    """Train at every point of a grid, for several seeds: what is done stays done, what fails is a row; one table."""

    method: Text = ""
    """dense, demp, or another method."""
    strength: Number = None
    """Peak strength of the penalty (lambda)."""
    noise: Number = None
    """Peak standard deviation of the noise (sigma)."""
    grid: Lists = ()
    """Values of a config key, a run for each; several keys are combined."""
    seeds: int = 1
    """Seeds at each point: 0, 1, ..."""
    out: Folder = ""
    """Folder of the sweep; without it, one under runs/ that the same command finds again."""
    devices: Names = ""
    """Devices, each with a process of its own: cuda:0,cuda:1"""
    jobs: int = 1
    """Processes per device, or at once (with one thread each on a CPU)."""
    budget_minutes: Number = None
    """Stop after so many minutes; the same command goes on later."""
    retry: Flag = False
    """Try again what failed."""
    measure: Flag = False
    """Also time each network's step beside the dense one's."""

    def run(self) -> dict[str, Any]:
        """Make what is missing; write the table of all there is."""
        console = self.console()
        left = self._make(console) if self._asked() else 0
        store = Store(self._folder())
        records = store.records()
        if not self._asked() and not records:
            raise UsageError(f"there is nothing to sweep; name values, for example {EXAMPLE}, or seeds")
        files = [store.table_file] if records else []
        if records:
            varied = {key for record in records for key in record["labels"]["setting"]}
            shared = about(TrainConfig.from_dict(store.about()["shared"]["base"]), varied)
            write_text(store.table_file, table.markdown(records, shared))
            widen(console)
            columns = table.columns(table.rows(records), table.split_of(records))
            draw(console, columns, left=[heading for heading, _ in columns].index("seeds"))
            for text in (shared, *table.failures(records), f"written: {store.table_file}"):
                console.print(text, markup=False, highlight=False)
        if store.skipped():
            console.print(told(store.skipped()), markup=False, highlight=False)
        if left:
            console.print(f"{left} runs are left; the same command goes on")
        return {
            "out": str(store.path),
            "rows": [row.to_dict() for row in table.rows(records)],
            "failed": sum(record["status"] != DONE for record in records),
            "left": left,
            "skipped": list(store.skipped()),
            "files": [str(file) for file in files],
        }

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
        """Carry out what is missing; how much is still missing then."""
        devices = [name.strip() for name in self.devices.split(",") if name.strip()]
        if devices and self.device:
            raise UsageError("--device and --devices both say where to train; give one of them")
        axes = parse_lists(self.grid, EXAMPLE)

        def make(setting: Mapping[str, Any]) -> TrainConfig:
            config = resolve(self, setting)
            return config.merged({"device": kind_of(devices) or resolve_device(config.device)})

        jobs = grid(make, axes, seeds=self.seeds, measure=self.measure)
        shared = {"base": make({}).merged({"seed": 0, "out": ""}).to_dict()}
        sweep = Sweep(self._folder(), jobs, shared=shared, retry=self.retry)
        done = len(jobs) - len(sweep.missing)
        console.print(f"{len(jobs)} runs in {self._folder()}, {done} of them done before", highlight=False)
        bars = console.is_terminal and not devices and self.jobs == 1
        with status_line(console, off=bars) as status:
            outcome = sweep.go(
                devices=devices,
                jobs=self.jobs,
                minutes=self.budget_minutes,
                view=self.view if bars else None,
                say=lambda text: console.print(text, markup=False, highlight=False),
                status=status,
            )
        return outcome.left


@contextmanager
def status_line(console: Console, *, off: bool) -> Iterator[Callable[[str], None] | None]:
    """On a terminal a line at the bottom that is kept up to date."""
    if off or not console.is_terminal:
        yield None
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


def told(skipped: list[str]) -> str:
    """How many lines were no results, and where the first of them are."""
    more = f", and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"{len(skipped)} lines of the results were skipped: {'; '.join(skipped[:3])}{more}"
