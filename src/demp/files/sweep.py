"""The folder of a sweep, a search, a comparison or the runs of studies: its files."""

from collections.abc import Iterator
from pathlib import Path

from demp.files.run import RunFiles


class SweepFiles:
    """Where the files of a sweep are."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.sweep_file = self.path / "sweep.json"
        self.results = self.path / "results"
        """Holds files of lines of results, whatever their names: earlier versions had one per process."""
        self.results_file = self.results / "runs.jsonl"
        self.runs = self.path / "runs"
        self.table_file = self.path / "table.md"
        self.journal_file = self.path / "search.journal"
        self.lock_file = self.path / ".lock"
        """Held by the command that runs the jobs."""
        self.token_file = self.path / ".token"
        """By which the Ray workers of that command find out that they see the same folder."""

    def job_folder(self, name: str) -> Path:
        """Return the folder of a job."""
        return self.runs / name

    def job_file(self, name: str) -> Path:
        """Return the file that says what was begun under the name of a job."""
        return self.runs / f"{name}.json"

    def job_log(self, name: str) -> Path:
        """Return the file of what the process of a job printed, if the process died."""
        return self.runs / f"{name}.log"

    def result_files(self) -> list[Path]:
        """Return every file of lines of results."""
        return sorted(self.results.glob("*.jsonl"))

    def run_folders(self) -> Iterator[Path]:
        """Yield the folder of every training, by name."""
        if self.runs.is_dir():
            yield from (path for path in sorted(self.runs.iterdir()) if path.is_dir() and RunFiles(path).exist())
