"""`demp report`: one HTML file from runs, sweeps and studies. Nothing here needs torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from demp.cli.base import Command, Flag
from demp.experiments.report import write
from demp.experiments.report.watch import SECONDS, watch
from demp.experiments.report.words import plural

Paths = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SWEEP|STUDY", help_behavior_hint="(one or more)")
]
Out = Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(report.html)")]
Seconds = Annotated[float, tyro.conf.arg(metavar="SECONDS", help_behavior_hint=f"({SECONDS:g})")]


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Write one HTML page about runs, sweeps, comparisons or studies; it needs no network, and torch neither."""

    paths: Paths
    """Folders of runs, sweeps, comparisons or study results, folders of them, or files of results."""
    out: Out = "report.html"
    """The page."""
    watch: Flag = False
    """Write it again while a run is under way, until all have ended or Ctrl-C; the open page follows."""
    every: Seconds = SECONDS
    """Between two looks of --watch."""

    def run(self) -> dict[str, Any]:
        """Read, write, say what was skipped."""
        console = self.console()

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False)

        if self.watch:
            say(f"open {self.out} in a browser; it loads itself again while this command runs (Ctrl-C ends it)")
            result = watch(self.paths, self.out, seconds=self.every, say=say)
        else:
            result = write(self.paths, self.out)
        if result["skipped"]:
            say(f"skipped: {'; '.join(result['skipped'])}")
        say(f"written: {result['out']} ({result['bytes'] / 1e6:.2f} MB, {plural(result['runs'], 'run')})")
        return result


def parse(arguments: Sequence[str]) -> Command:
    """The command in ``report ...``; tyro explains unknown flags and exits."""
    return tyro.cli(Report, prog="demp report", args=list(arguments[1:]), config=(tyro.conf.FlagCreatePairsOff,))
