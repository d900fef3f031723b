"""The folder of a comparison: what its runs share, one folder per run, one line per finished run."""

import json
from pathlib import Path
from typing import Any

from demp.compare.plan import Planned
from demp.errors import UsageError
from demp.train.config import DENSE, TrainConfig
from demp.train.runfolder import RunFolder, read_lines, write_text

SCHEMA = 1
"""Of the lines of results.jsonl."""
DONE, FAILED = "done", "failed"
SEVERAL = "several machines"
"""Where a run was made on more than one; its times compare with no other's."""


class Store:
    """One comparison on disk. It grows: methods, settings and seeds may be added later, on the same base."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.base_file = self.path / "base.toml"
        self.results_file = self.path / "results.jsonl"
        self.table_file = self.path / "table.md"
        self.runs = self.path / "runs"

    def begin(self, base: TrainConfig, runs: list[Planned]) -> None:
        """Take up the folder for these runs.

        Raises:
            UsageError: what is there is no comparison, or one of other runs.
        """
        shared = base.merged({"method": {"name": DENSE}, "seed": 0, "out": ""})
        if not self.base_file.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise UsageError(
                    f"the folder {self.path} is not empty and holds no comparison; give another with --out"
                )
            self.runs.mkdir(parents=True, exist_ok=True)
            write_text(self.base_file, shared.to_toml())
        changes = TrainConfig.from_toml(self.base_file).changes(shared)
        self._refuse("a comparison", changes)
        records = {record["name"]: record for record in self.records()}
        for run in runs:
            folder = RunFolder(self.runs / run.name)
            if folder.config_file.is_file():
                self._refuse(f"the run {run.name}", folder.config().changes(run.config))
            record = records.get(run.name, {})
            if record.get("config_hash", run.config.identity()) != run.config.identity():
                self._refuse(f"the run {run.name}", ["its config"])

    def _refuse(self, what: str, changes: list[str]) -> None:
        if changes:
            raise UsageError(
                f"{self.path} holds {what} with another config: {'; '.join(changes)}; give another folder with --out"
            )

    def folder(self, run: Planned) -> Path:
        """The run folder of ``run``."""
        return self.runs / run.name

    def records(self) -> list[dict[str, Any]]:
        """What has ended, the last word on each run; an unfinished last line is no word."""
        if not self.results_file.is_file():
            return []
        if not self.results_file.read_bytes().endswith(b"\n"):
            whole, _, _ = self.results_file.read_text(encoding="utf-8").rpartition("\n")
            write_text(self.results_file, whole + "\n" if whole else "")
        return list({record["name"]: record for record in read_lines(self.results_file)}.values())

    def add(self, record: dict[str, Any]) -> None:
        """Append one line."""
        with self.results_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
