"""Carry out what is missing of a comparison: one run after the other, or several processes at once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demp.compare.one import carry_out, failure
from demp.compare.plan import Planned
from demp.compare.store import DONE, FAILED, Store
from demp.errors import UsageError
from demp.train import Observer, TrainConfig
from demp.train.config import DENSE
from demp.train.extras import need
from demp.train.run import resolve_device
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals

POLL_SECONDS = 0.1
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What there is when the process leaves a comparison."""

    records: list[dict[str, Any]]
    """Of every run that has ended, now or earlier."""
    left: int
    """Runs of the plan that have not."""


class Deadline(Observer):
    """Asks a run to stop when the time is up."""

    def __init__(self, at: float) -> None:
        self.at = at

    def passed(self) -> bool:
        """Is the time up?"""
        return time.monotonic() >= self.at

    def asks_to_stop(self) -> bool:
        """The same, as a run asks it."""
        return self.passed()


class Comparison:
    """The runs of a plan in one folder; what has ended is kept, what was interrupted goes on."""

    def __init__(self, path: str | Path, base: TrainConfig, runs: Sequence[Planned], *, retry: bool = False) -> None:
        need("matplotlib", "report")  # now rather than after the last run
        device = resolve_device(base.device)
        self.runs = [replace(run, config=replace(run.config, device=device)) for run in runs]
        self.store = Store(path)
        self.store.begin(replace(base, device=device), self.runs)
        ended = {r["name"] for r in self.store.records() if r["status"] == DONE or not retry}
        self.missing = [run for run in self.runs if run.name not in ended]

    def go(
        self,
        *,
        jobs: int = 1,
        minutes: float | None = None,
        view: Callable[[str], Observer] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Outcome:
        """Make what is missing, at most ``jobs`` runs at once, for at most so many minutes.

        ``view`` makes the observer of a run from its title, for one run at a time; ``say`` takes lines for people.

        Raises:
            TrainingInterrupted: a signal; what was being made can be continued.
            UsageError: the dense run cannot be made as it was asked for.
        """
        if jobs < 1:
            raise UsageError(f"jobs is {jobs}; give at least 1")
        if minutes is not None and minutes <= 0:
            raise UsageError(f"budget-minutes is {minutes:g}; give a number above 0")
        deadline = Deadline(float("inf") if minutes is None else time.monotonic() + 60 * minutes)
        try:
            if jobs == 1:
                self._one_by_one(deadline, view, say)
            else:
                self._at_once(jobs, deadline, say)
        except TrainingInterrupted as stop:
            outcome = self._outcome()
            if not deadline.passed():
                done = len(self.runs) - outcome.left
                text = f"interrupted: {done} of {len(self.runs)} runs are done; the same command goes on"
                raise TrainingInterrupted(text, stop.exit_code) from None
        return self._outcome()

    def _outcome(self) -> Outcome:
        records = self.store.records()
        ended = {record["name"] for record in records}
        return Outcome(records, sum(run.name not in ended for run in self.runs))

    def _title(self, run: Planned) -> str:
        return f"[{self.runs.index(run) + 1}/{len(self.runs)}] {run.name}"

    def _one_by_one(
        self, deadline: Deadline, view: Callable[[str], Observer] | None, say: Callable[[str], None]
    ) -> None:
        for run in self.missing:
            if deadline.passed():
                return
            watchers = [deadline] if view is None else [deadline, view(self._title(run))]
            if view is None:
                say(f"{self._title(run)}: begins")
            self._take(run, carry_out(run, self.store.folder(run), watchers), say)

    def _at_once(self, jobs: int, deadline: Deadline, say: Callable[[str], None]) -> None:
        waiting, running = list(self.missing), list[Process]()
        with stop_signals() as stop:
            try:
                while waiting or running:
                    if stop() or deadline.passed():
                        raise TrainingInterrupted("", 128 + (stop() or ASKED))
                    while waiting and len(running) < jobs:
                        run = waiting.pop(0)
                        running.append(Process(run, self.store.folder(run)))
                        say(f"{self._title(run)}: begins")
                    time.sleep(POLL_SECONDS)
                    for process in [process for process in running if process.ended()]:
                        running.remove(process)
                        self._take(process.run, process.record(), say)
            finally:
                for process in running:
                    process.stop()
                for process in running:  # one may have reached its end before it heard
                    record = process.record()
                    if record["status"] == DONE:
                        self._take(process.run, record, say)

    def _take(self, run: Planned, record: dict[str, Any], say: Callable[[str], None]) -> None:
        if record["status"] == FAILED and run.method == DENSE and record.get("mistake"):
            raise UsageError(f"the dense run cannot be made: {record['error']}")
        self.store.add(record)
        say(f"{self._title(run)}: {brief(record)}")


class Process:
    """A run in a process of its own, with one thread where it runs on a CPU. Signals of a terminal do not reach it."""

    def __init__(self, run: Planned, folder: Path) -> None:
        self.run = run
        on_cpu = run.config.device == "cpu"
        asked = {name: getattr(run, name) for name in ("name", "method", "setting", "seed")}
        asked |= {"config": run.config.to_dict(), "folder": str(folder), "threads": 1 if on_cpu else 0}
        self.log = folder.parent / f"{folder.name}.log"
        with self.log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "demp.compare.one"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | ({name: "1" for name in THREADS} if on_cpu else {}),
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked))
        self._process.stdin.close()

    def ended(self) -> bool:
        """Is it over?"""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask it to stop after its step."""
        if not self.ended():
            self._process.terminate()

    def record(self) -> dict[str, Any]:
        """What it said last; that it died, if it said nothing."""
        assert self._process.stdout is not None
        said = self._process.stdout.read().splitlines()
        code = self._process.wait()
        self._process.stdout.close()
        if code in (0, 128 + ASKED):
            self.log.unlink()
        if code == 0 and said:
            return json.loads(said[-1])
        cause = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return failure(self.run, f"its process {cause}; {self.log} has what it said")


def brief(record: dict[str, Any]) -> str:
    """One run in a line."""
    if record["status"] == FAILED:
        return f"failed: {record['error']}"
    masked = f" and {record['masked_share']:.0%} masked" if record["masked_share"] else ""
    return (
        f"{record['split']} accuracy {record['eval/top1']:.2%}, {record['neuron_sparsity']:.0%} of neurons removed, "
        f"{record['weight_sparsity']:.0%} of weights removed{masked}, {record['train_seconds']:.0f} s"
    )
