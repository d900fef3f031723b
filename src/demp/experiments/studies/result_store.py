"""What is known already: the pool of all runs of a scale, and the results that are kept with the project."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.studies.training import complete
from demp.experiments.sweep.job import Job
from demp.files import results as records
from demp.files.results import DONE, Result
from demp.files.sweep import SweepFiles
from demp.train.config import TrainConfig
from demp.train.defaults import as_meant

Known = Mapping[str, Result]
"""The last word on each job that ended, by identity."""


@dataclass
class ResultStore:
    """Two places for one scale: ``kept``/SCALE/STUDY.jsonl, and the sweep ``pool``/SCALE that all studies share."""

    kept: Path
    pool: Path
    scale: str
    skipped: list[str] = field(default_factory=list)
    """Lines that could not be used: which, and why."""

    @property
    def runs(self) -> Path:
        """The folder of the sweep that runs the jobs."""
        return self.pool / self.scale

    @property
    def folder(self) -> Path:
        """Where results, figures and tables lie."""
        return self.kept / self.scale

    def file(self, study: str) -> Path:
        """The kept results of a study."""
        return self.folder / f"{study}.jsonl"

    def known(self) -> dict[str, Result]:
        """Return the records of all jobs that have ended; what is done stays, whatever failed later."""
        self.skipped.clear()
        found: dict[str, Result] = {}
        kept = sorted(self.folder.glob("*.jsonl"))
        for record in self._read([*kept, *SweepFiles(self.runs).result_files()]):
            identity = identity_of(record)
            if record["status"] == DONE or identity not in found:
                found[identity] = record
        self.skipped += [f"{file}: its last line is not whole" for file in kept if not ends(file)]
        return found

    def _read(self, files: Sequence[Path]) -> Iterable[Result]:
        for file in files:
            for record in lines(file, self.skipped):
                if isinstance(record.get("work"), str) and isinstance(record.get("arguments"), dict):
                    yield record
                else:
                    self.skipped.append(f"{file}: {record['name']} does not say what was run")

    def foreign(self, study: str, jobs: Sequence[Job]) -> list[str]:
        """Return a sentence for each record in the file of a study that none of its jobs would make."""
        own = {job.identity for job in jobs}
        file = self.file(study)
        return [f"{file}: {r['name']} is no run of {study}" for r in lines(file, []) if identity_of(r) not in own]

    def keep(self, study: str, jobs: Sequence[Job], known: Known) -> int:
        """Append to a study's file what is done of its jobs and not in it yet; return the number of lines."""
        file = self.file(study)
        there = {identity_of(record) for record in lines(file, [])}
        new = [record for record in of(jobs, known) if record["identity"] not in there]
        if new:
            file.parent.mkdir(parents=True, exist_ok=True)
            broken = file.is_file() and not ends(file)
            with file.open("a", encoding="utf-8") as out:
                out.write("\n" * broken + "".join(json.dumps(record) + "\n" for record in new))
        return len(new)


def lines(file: Path, skipped: list[str]) -> Iterable[Result]:
    """Yield every result in a file, if there is one; lines that are none are named in ``skipped``."""
    if not file.is_file():
        return
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        record, fault = records.parsed(line)
        if record is None:
            skipped.append(f"{file}:{number} {fault}")
        else:
            yield record


def ends(file: Path) -> bool:
    """Return whether the last line is whole."""
    with file.open("rb") as lines:
        return not lines.seek(0, 2) or (lines.seek(-1, 2), lines.read(1))[1] == b"\n"


def of(jobs: Sequence[Job], known: Known) -> list[Result]:
    """Return what is done of a study in the order of its plan, with the names and labels that it gives."""
    ended = [(job, known[job.identity]) for job in jobs if job.identity in known]
    about = [({"identity": job.identity, "name": job.name, "labels": job.labels}, record) for job, record in ended]
    return [{**record, **own} for own, record in about if record["status"] == DONE]


def failures(jobs: Sequence[Job], known: Known) -> list[str]:
    """Return a sentence for each job that failed, with its error."""
    ended = [(job.name, known[job.identity]) for job in jobs if job.identity in known]
    return [f"{name}: {record.get('error', '')}" for name, record in ended if record["status"] != DONE]


def identity_of(record: Result) -> str:
    """Return the identity that the job of a record has today.

    A config written before a field existed meant the field's default, or what that was until it changed
    (`demp.train.defaults`).
    """
    arguments: Any = record.get("arguments")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("config"), dict):
        return str(record.get("identity"))
    try:
        arguments = {**arguments, "config": complete(TrainConfig.from_dict(as_meant(arguments["config"]))).to_dict()}
        return Job(name=record["name"], work=record["work"], arguments=arguments).identity
    except UsageError:
        return str(record.get("identity"))
