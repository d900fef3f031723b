"""Some studies at one scale: run what is missing, keep what finished, write figures, tables and verdicts."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.studies import drawing, result_store
from demp.experiments.studies.base import NONE, SCALES, SEEDS, Claim, Study, Table, check_scale, data_read
from demp.experiments.studies.result_store import Known, ResultStore
from demp.experiments.sweep import Job, Sweep
from demp.files.results import DONE, Result
from demp.files.study import SCHEMA
from demp.train import sources
from demp.train.extras import need
from demp.train.runfolder import write_text


@dataclass(frozen=True)
class Shown:
    """A study as far as its runs are there."""

    study: Study
    scale: str
    planned: int
    records: list[Result]
    failed: list[str]
    table: Table | None
    claims: list[Claim]
    skipped: list[str]
    """Lines of its results that could not be used."""
    files: list[Path]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what STUDY.json says, and what a report reads."""
        study = self.study
        return {
            "schema": SCHEMA,
            "id": study.id,
            "title": study.title,
            "section": study.section,
            "remark": study.remark,
            "scale": self.scale,
            "planned": self.planned,
            "done": len(self.records),
            "failed": self.failed,
            "skipped": self.skipped,
            "claims": [claim.to_dict() for claim in self.claims],
            "table": None if self.table is None else vars(self.table),
            "files": [file.name for file in self.files],
            "machines": sorted({f"{r.get('machine', NONE)}, torch {r.get('torch', NONE)}" for r in self.records}),
        }


class Campaign:
    """Studies of one scale with one store of results."""

    def __init__(self, studies: Sequence[Study], store: ResultStore, *, seeds: int | None = None) -> None:
        check_scale(store.scale)
        self.studies, self.store, self.scale = list(studies), store, store.scale
        self.seeds = SEEDS[self.scale] if seeds is None else seeds
        self.known: dict[str, Result] = store.known()
        self.plans = {study.id: study.plan(self.scale, self.seeds) for study in self.studies}
        self.jobs = in_turns(list(self.plans.values()))

    def missing(self, retry: bool = False) -> list[Job]:
        """What is not done, nor failed before unless that is to be tried again."""
        return [
            job
            for job in self.jobs
            if job.identity not in self.known or (retry and self.known[job.identity]["status"] != DONE)
        ]

    def go(self, *, retry: bool = False, **options: Any) -> int:
        """Run what is missing, all studies in one sweep; how many runs are left. Options are those of `Sweep.go`.

        Raises:
            UsageError: data or a package is not at hand; nothing was begun.
            TrainingInterrupted: a signal; what finished is kept.
        """
        missing = self.missing(retry)
        if not missing:
            return 0
        need("matplotlib", "report")  # now rather than after the last run
        for name, wanting in data_of(missing, self.plans).items():
            try:
                sources.find(name)
            except UsageError as error:
                raise UsageError(f"{', '.join(wanting)} at scale {self.scale}: {error}") from None
        sweep = Sweep(self.store.runs, missing, what="the runs of studies", shared={"scale": self.scale}, retry=retry)
        try:
            return sweep.go(**options).left
        finally:
            self.known = self.store.known()

    def write(self, study: Study) -> Shown:
        """Keep the results of a study, draw its figure, write its table and its verdicts, of all seeds there are."""
        jobs = self.all_of(study)
        self.store.keep(study.id, jobs, self.known)
        shown = self.show(study)
        if not shown.records:
            return shown
        stem = self.store.folder / study.id
        files = drawing.save(lambda: study.figure(shown.records, self.scale), stem)
        files += [stem.with_suffix(".md"), stem.with_suffix(".json")]
        shown = replace(shown, files=files)
        write_text(stem.with_suffix(".md"), page(shown))
        write_text(stem.with_suffix(".json"), json.dumps(shown.to_dict(), indent=2) + "\n")
        return shown

    def show(self, study: Study) -> Shown:
        """Table and verdicts of what there is."""
        jobs = self.all_of(study)
        found = result_store.of(jobs, self.known)
        places = (str(self.store.file(study.id)), str(self.store.runs))
        own = [line for line in self.store.skipped if line.startswith(places)]
        return Shown(
            study=study,
            scale=self.scale,
            planned=len(jobs),
            records=found,
            failed=result_store.failures(jobs, self.known),
            table=study.table(found, self.scale) if found else None,
            claims=decided(study.claims(found), self.scale),
            skipped=own + self.store.foreign(study.id, jobs),
            files=[],
        )

    def all_of(self, study: Study) -> list[Job]:
        """The plan of a study, with seeds beyond those asked for as far as any run of them is there."""
        jobs = list(self.plans[study.id])
        own = {job.identity for job in jobs}
        for seed in range(self.seeds, 100):
            more = [job for job in study.jobs(self.scale, seed) if job.identity in self.known]
            if not more:
                break
            jobs += [job for job in more if job.identity not in own]
            own |= {job.identity for job in more}
        return jobs


def decided(claims: Sequence[Claim], scale: str) -> list[Claim]:
    """The claims; a smoke run decides none."""
    return [replace(claim, holds=None) for claim in claims] if scale == "smoke" else list(claims)


def in_turns(plans: Sequence[Sequence[Job]]) -> list[Job]:
    """All jobs of several plans, each once, seed by seed and study by study."""
    found: dict[str, Job] = {}
    jobs = [job for plan in plans for job in plan]
    for job in sorted(jobs, key=lambda job: job.labels.get("seed", 0)):
        found.setdefault(job.identity, job)
    return list(found.values())


def data_of(missing: Sequence[Job], plans: Mapping[str, Sequence[Job]]) -> dict[str, list[str]]:
    """The data sets that the missing jobs read, and which studies want each."""
    read = {job.identity: name for job in missing if (name := data_read(job))}
    found: dict[str, list[str]] = {}
    for study, jobs in plans.items():
        for name in dict.fromkeys(read[job.identity] for job in jobs if job.identity in read):
            found.setdefault(name, []).append(study)
    return found


def use_data(folder: str) -> None:
    """Look for data sets in this folder, in this process and those that it starts.

    Raises:
        UsageError: there is no such folder.
    """
    if folder:
        if not Path(folder).expanduser().is_dir():
            raise UsageError(f"there is no folder {folder} with data sets; check --data")
        os.environ[sources.FOLDER_VARIABLE] = str(Path(folder).expanduser().resolve())


def page(shown: Shown) -> str:
    """Return the text of STUDY.md: title, figure, table, claims and failures."""
    study, facts = shown.study, shown.to_dict()
    paragraphs = [
        f"# {study.id}: {study.title}",
        f"{study.section} of the paper; scale {shown.scale}; {len(shown.records)} of {shown.planned} runs.",
        study.remark,
        *(f"![{study.title}]({file.name})" for file in shown.files if file.suffix == ".svg"),
        "" if shown.table is None else shown.table.markdown(),
        "Claims:\n\n" + "\n".join(f"* {claim}" for claim in shown.claims) if shown.claims else "",
        listed("Failed", shown.failed),
        listed("Lines of the results that were skipped", shown.skipped),
        f"Measured on: {'; '.join(facts['machines'])}. Made with: demp study {study.id} --scale {shown.scale}",
    ]
    return "\n\n".join(text for text in paragraphs if text) + "\n"


def listed(title: str, lines: Sequence[str]) -> str:
    """Items under a title; empty without items."""
    return f"{title} ({len(lines)}):\n\n" + "\n".join(f"* {line}" for line in lines) if lines else ""


def overview(studies: Sequence[Study], store: Callable[[str], ResultStore], seeds: int | None) -> list[dict[str, Any]]:
    """Every study with its cost at each scale, and what is at hand; JSON-ready."""
    known: Mapping[str, Known] = {scale: store(scale).known() for scale in SCALES}
    many = {scale: SEEDS[scale] if seeds is None else seeds for scale in SCALES}
    return [
        {
            "id": study.id,
            "title": study.title,
            "section": study.section,
            "remark": study.remark,
            "scales": {scale: at(study, scale, many[scale], known[scale]) for scale in SCALES},
        }
        for study in studies
    ]


def at(study: Study, scale: str, seeds: int, known: Known) -> dict[str, Any]:
    """Cost and state of a study at one scale; all seeds cost the same."""
    first = study.plan(scale, 1)
    planned = study.plan(scale, seeds) if known else []
    return {
        **study.cost(first, scale).of_seeds(seeds).to_dict(),
        "data": list(dict.fromkeys(name for job in first if (name := data_read(job)))),
        "at_hand": len(result_store.of(planned, known)),
        "failed": len(result_store.failures(planned, known)),
    }
