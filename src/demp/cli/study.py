"""`demp study`: the figures and tables of the paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table as Drawn

from demp.cli.base import Command, Count, Flag, Folder, Number, Text
from demp.cli.overrides import listed
from demp.cli.sweeping import run_jobs
from demp.cli.tables import widen
from demp.errors import UsageError
from demp.experiments import studies
from demp.experiments.studies.campaign import Campaign, Shown, overview, use_data
from demp.experiments.studies.result_store import ResultStore
from demp.experiments.sweep.sweep import HERE
from demp.files.study import RESULTS

LIST, ALL = "list", "all"
RUNS = "runs/studies"

Ids = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID", help_behavior_hint="")]]


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Command):
    """Make figures and tables of the paper: run what is missing, draw, and say which claims hold."""

    ids: Ids = ()
    """fig1 ... fig17, table1 ... table3, controls, decoupled, hybrid, lengths, theory; several; all; or list, for what
    exists."""
    scale: Text = "cpu"
    """smoke (seconds, bundled data), cpu (real data, tens of minutes on two cores) or paper (its settings, GPUs)."""
    seeds: Count = None
    """Seeds 0, 1, ...; without it 3 at scale paper, else 1."""
    data: Folder = ""
    """Folder that holds the data sets (cifar10, mnist, ...); without it the hub, or the environment's DEMP_DATA."""
    out: Folder = RESULTS
    """Folder of results, figures and tables; those of a scale lie in a folder of its name."""
    runs: Folder = RUNS
    """Folder of all runs, which studies share."""
    jobs: int = 1
    """Runs at once per device, each a process."""
    devices: Text = ""
    """cpu, cuda:0,cuda:1, ...; without it one GPU if there is one."""
    on: Text = HERE
    """here, or ray: on a Ray cluster (RAY_ADDRESS), or on one of this machine."""
    budget_minutes: Number = None
    """Stop after so many minutes; the same command goes on later."""
    retry: Flag = False
    """Try again what failed."""
    draw_only: Flag = False
    """Run nothing: figure, table and claims of what is at hand."""

    def run(self) -> dict[str, Any]:
        """List the studies, or run the chosen ones and show figures, tables and claims."""
        console = self.console()
        if self.ids == (LIST,):
            return self._list(console)
        chosen = self._chosen()
        use_data(self.data)
        campaign = Campaign(chosen, self._store(self.scale), seeds=self.seeds)
        left = len(campaign.missing(self.retry))
        count = f"{len(campaign.jobs)} runs at scale {self.scale}, {len(campaign.jobs) - left} of them at hand"
        console.print(count, highlight=False)
        try:
            if not self.draw_only:
                left = self._go(campaign, console)
        finally:
            shown = [campaign.write(study) for study in chosen]
        for one in shown:
            show(console, one, self._store(self.scale).folder)
        if left:
            console.print(f"{left} runs are left; the same command goes on")
        return {"scale": self.scale, "left": left, "studies": [one.to_dict() for one in shown]}

    def _go(self, campaign: Campaign, console: Console) -> int:
        """Run what is missing; return how much is left."""
        return run_jobs(campaign.go, self, listed(self.devices), console, retry=self.retry)

    def _chosen(self) -> list[studies.Study]:
        if not self.ids:
            raise UsageError("name a study, for example fig3; all is all of them; demp study list shows what exists")
        names = studies.names() if ALL in self.ids else dict.fromkeys(self.ids)
        return [studies.find(name) for name in names]

    def _store(self, scale: str) -> ResultStore:
        return ResultStore(Path(self.out), Path(self.runs), scale)

    def _list(self, console: Console) -> dict[str, Any]:
        """What exists, what it costs, what is at hand."""
        found = overview([studies.find(name) for name in studies.names()], self._store, self.seeds)
        table = Drawn("study", "what it shows", *studies.SCALES, box=None, pad_edge=False, header_style="bold")
        for one in found:
            cells = (cell(one["scales"][scale]) for scale in studies.SCALES)
            table.add_row(one["id"], f"{one['title']} ({one['section']})", *cells)
        widen(console)
        console.print(table)
        for scale in studies.SCALES:
            basis = next(one["scales"][scale]["basis"] for one in found)
            console.print(f"time at scale {scale}: {basis}", highlight=False)
        return {"studies": found}


def cell(cost: dict[str, Any]) -> str:
    """Runs at hand of all, and the time on one core or GPU."""
    failed = f", {cost['failed']} failed" if cost["failed"] else ""
    return f"{cost['at_hand']}/{cost['runs']} runs{failed}, {duration(cost['seconds'])}"


def duration(seconds: float) -> str:
    """In the unit that reads best."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def show(console: Console, shown: Shown, folder: Path) -> None:
    """Table, claims and what was left out of one study."""
    console.print(f"\n{shown.study.id}: {shown.study.title} ({shown.study.section})", style="bold", highlight=False)
    console.print(f"{len(shown.records)} of {shown.planned} runs", highlight=False)
    if shown.table is not None:
        drawn = Drawn(*shown.table.headings, box=None, pad_edge=False, header_style="bold")
        for row in shown.table.rows:
            drawn.add_row(*row)
        widen(console)
        console.print(drawn)
    lines: Sequence[str] = [*map(str, shown.claims), *(f"failed: {text}" for text in shown.failed)]
    if shown.skipped:
        lines = [*lines, f"{len(shown.skipped)} lines of results were skipped:", *shown.skipped]
    if shown.files:
        lines = [*lines, f"written: {', '.join(str(folder / file.name) for file in shown.files)}"]
    for line in lines:
        console.print(line, markup=False, highlight=False)
