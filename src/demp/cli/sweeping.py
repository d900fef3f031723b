"""What the commands share that make many runs: where, how many at once, for how long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from demp.cli.base import Flag, Names, Number, Text, Training
from demp.cli.overrides import listed
from demp.errors import UsageError
from demp.experiments.sweep import Outcome, Sweep
from demp.experiments.sweep.devices import kind_of
from demp.experiments.sweep.sweep import HERE
from demp.train.config import TrainConfig
from demp.train.run import resolve_device

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sweeping(Training):
    """A command that makes many runs: where they are made, how many at once, for how long."""

    devices: Names = ""
    """Devices, each with processes of its own: cuda:0,cuda:1"""
    jobs: int = 1
    """Processes per device, or at once (with one thread each on a CPU)."""
    on: Text = HERE
    """here, or ray: on the Ray cluster at RAY_ADDRESS, or on one of this machine."""
    budget_minutes: Number = None
    """Stop after so many minutes; the same command goes on later."""
    retry: Flag = False
    """Try again what failed."""

    def places(self) -> list[str]:
        """Return the names in ``--devices``.

        Raises:
            UsageError: ``--device`` is given beside them.
        """
        devices = listed(self.devices)
        if devices and self.device:
            raise UsageError("--device and --devices both say where to train; give one of them")
        return devices

    def placed(self, config: TrainConfig) -> TrainConfig:
        """The config with its device decided: that of --devices, or this machine's; a cluster may have another."""
        elsewhere = self.on != HERE and config.device != "auto"
        device = kind_of(self.places()) or (config.device if elsewhere else resolve_device(config.device))
        return config.merged({"device": device})

    def run_sweep(self, sweep: Sweep, console: Console) -> Outcome:
        """Do what is missing of a sweep."""
        return run_jobs(sweep.go, self, self.places(), console)


def run_jobs(go: Callable[..., T], command: Any, devices: list[str], console: Console, **options: Any) -> T:
    """Call ``go`` (`Sweep.go`, say) with the flags of a command, with a live view where there is a terminal."""
    bars = console.is_terminal and not devices and command.jobs == 1 and command.on == HERE
    with status_line(console, off=bars) as status:
        return go(
            devices=devices,
            jobs=command.jobs,
            on=command.on,
            minutes=command.budget_minutes,
            view=command.view if bars else None,
            say=lambda text: console.print(text, markup=False, highlight=False),
            status=status,
            **options,
        )


@contextmanager
def status_line(console: Console, *, off: bool) -> Iterator[Callable[[str], None] | None]:
    """On a terminal a line at the bottom that is kept up to date."""
    if off or not console.is_terminal:
        yield None
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


def skipped_message(skipped: list[str]) -> str:
    """How many lines were no results, and where the first of them are."""
    more = f", and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"{len(skipped)} lines of the results were skipped: {'; '.join(skipped[:3])}{more}"
