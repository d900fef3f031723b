"""What the paths hold that a report is asked for: runs, sweeps, comparisons, studies, or folders of them."""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.report.comparable import comparable_runs
from demp.experiments.report.groups import best
from demp.experiments.report.results import read_results
from demp.experiments.report.runs import UNFINISHED, ReportedRun, glance, read_run, study_closely
from demp.experiments.report.studies import StudySummary, is_study, place_of, read_study
from demp.files.reading import Fault, Skipped, read_json
from demp.files.results import DONE
from demp.files.run import DENSE, RunFiles
from demp.files.schema import flat
from demp.files.study import NAMES
from demp.files.sweep import SweepFiles

CLOSELY = 8
"""Runs that are shown one by one."""
MANY = 64
"""From so many runs on, several processes read."""
IGNORED = ("out", "seed", "config_hash", "recipe", "device", "checkpoint_every_steps", "log_every_steps")
"""Fields of a config that do not distinguish two runs."""


@dataclass
class Material:
    """All that a report is made from."""

    paths: list[Path]
    runs: list[ReportedRun] = field(default_factory=list)
    studies: list[StudySummary] = field(default_factory=list)
    shown: list[ReportedRun] = field(default_factory=list)
    """Of the runs those that are shown one by one."""
    skipped: list[Fault] = field(default_factory=list)
    lines_skipped: int = 0

    @property
    def live(self) -> bool:
        """Whether a run among them has not ended."""
        return any(run.status == UNFINISHED for run in self.runs)


def gather(paths: Sequence[str | Path]) -> Material:
    """Read all that the paths hold, and choose what is shown run by run.

    Raises:
        UsageError: a path is not there, or there is no run and no claim in any.
    """
    if not paths:
        raise UsageError("give a run, a sweep, a comparison or a study: demp report FOLDER")
    known = [place_of(str(path)) if is_name(path) else Path(path) for path in paths]
    material, skipped = Material(known), Skipped()
    for path in material.paths:
        if not path.exists():
            raise UsageError(f"there is no {path}; give the folder of a run, a sweep or a study")
        take(path, material, skipped)
    if not material.runs and not material.studies:
        raise UsageError(nothing_to_report(material.paths, skipped))
    distinguish(material.runs)
    make_names_unique(material.runs)
    material.shown = chosen(material.runs)
    shown = {id(run) for run in material.shown}
    glance_at([run for run in material.runs if id(run) not in shown], skipped)
    for run in material.shown:
        study_closely(run, skipped)
    material.skipped, material.lines_skipped = skipped.faults, skipped.lines
    return material


def nothing_to_report(paths: list[Path], skipped: Skipped) -> str:
    """Return a sentence that says why there is nothing to report."""
    where = ", ".join(map(str, paths))
    faults = skipped.faults
    seen = f" (skipped: {faults[0]}{', ...' if len(faults) > 1 else ''})" if faults else ""
    return f"{where} holds no run{seen}; give the folder of a run (with config.toml), a sweep or a study"


def take(path: Path, material: Material, skipped: Skipped) -> None:
    """Add what one path holds to the material."""
    if path.is_file():
        lines, summary = path.with_suffix(".jsonl"), path.with_suffix(".json")
        add_results([lines if summary == path else path], [], material, skipped)
        if summary == path or is_study(summary):
            add_study(summary, material, skipped)
    elif RunFiles(path).exist():
        material.runs.append(read_run(path, skipped))
    elif not take_folder(path, material, skipped):
        for folder in folders(path):
            if RunFiles(folder).exist():
                material.runs.append(named(read_run(folder, skipped), path))
            else:
                take_folder(folder, material, skipped)


def take_folder(path: Path, material: Material, skipped: Skipped) -> bool:
    """Add a sweep, a comparison or the results of studies; return False where the folder is none of them."""
    sweep = SweepFiles(path)
    files, runs = sorted(path.glob("*.jsonl")) + sweep.result_files(), list(sweep.run_folders())
    before = len(material.runs), len(material.studies)
    add_results(files, runs, material, skipped)
    for file in sorted(path.glob("*.json"), key=numbered):
        if is_study(file):
            add_study(file, material, skipped)
    return (len(material.runs), len(material.studies)) != before


def add_results(files: list[Path], folders: list[Path], material: Material, skipped: Skipped) -> None:
    """Add runs from their lines of results, from their folders, or from both."""
    found = read_results(files, skipped)
    for folder in folders:
        run = found.get(folder.name)
        if run is None:
            run = found[folder.name] = read_run(folder, skipped)
            labels = read_json(SweepFiles(folder.parent.parent).job_file(folder.name), skipped).get("labels")
            if isinstance(labels, dict):
                run.labels |= {name: value for name, value in labels.items() if name != "seed"}
        elif run.status == DONE:
            run.folder = folder
            run.config = run.config or read_run(folder, skipped).config
    material.runs += found.values()


def is_name(path: str | Path) -> bool:
    """Return whether the id of a study is meant rather than a path."""
    return NAMES.fullmatch(str(path)) is not None and not Path(path).exists()


def add_study(file: Path, material: Material, skipped: Skipped) -> None:
    """Add what the summary of a study says."""
    study = read_study(file, skipped)
    if study is not None:
        material.studies.append(study)


def numbered(file: Path) -> tuple[bool, list[str | int]]:
    """Return a key that puts fig2 before fig11, and both before what has no number."""
    parts = [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", file.name)]
    return len(parts) == 1, parts


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, by name."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def named(run: ReportedRun, root: Path) -> ReportedRun:
    """Give the run the name that it has below ``root``, and return it."""
    assert run.folder is not None
    run.name = str(run.folder.relative_to(root))
    return run


def distinguish(runs: list[ReportedRun]) -> None:
    """Label runs that come without labels by the values in which their configs differ; drop labels that all share."""
    bare = [run for run in runs if run.folder is not None and set(run.labels) == {"method"}]
    by_method: dict[str, list[ReportedRun]] = {}
    for run in bare:
        by_method.setdefault(run.method, []).append(run)
    for alike in by_method.values():
        configs = [plain_values(run.config) for run in alike]
        names = dict.fromkeys(name for config in configs for name in config)
        for name in names:
            if name in IGNORED or len({repr(config.get(name)) for config in configs}) == 1:
                continue
            for run, config in zip(alike, configs, strict=True):
                if name in config:
                    run.labels[name.removeprefix("method.options.")] = config[name]
    for name in {name for run in runs for name in run.labels} - {"method", "setting"}:
        if len({repr(run.labels.get(name)) for run in runs}) == 1:
            for run in runs:
                run.labels.pop(name, None)


def make_names_unique(runs: list[ReportedRun]) -> None:
    """Add the folder's name, or a number, to the names of runs that have the same one."""
    for length in (2, 3):
        many = Counter(run.name for run in runs)
        for run in runs:
            if many[run.name] > 1 and run.folder is not None:
                run.name = "/".join(run.folder.absolute().parts[-length:])
    seen: Counter[str] = Counter()
    many = Counter(run.name for run in runs)
    for run in runs:
        if many[run.name] > 1:
            seen[run.name] += 1
            run.name = f"{run.name} ({seen[run.name]})"


def plain_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config by dotted name, lists aside."""
    return {name: value for name, value in flat(config).items() if not isinstance(value, list)}


def chosen(runs: list[ReportedRun]) -> list[ReportedRun]:
    """Return the runs to show one by one.

    The best setting first, what is under way, the first seed of every other setting, and at the end a dense run.
    """
    sets = comparable_runs(runs)
    firsts = [best(one.groups, one.dense) for one in sets]
    order = [run for first in firsts[:2] if first for run in first.done[:1]]
    order += [run for run in runs if run.status == UNFINISHED]
    groups = [group for one in sets for group in one.groups]
    order += [group.done[0] for group in groups if group.done and group.method != DENSE]
    order += [run for run in runs if run.status == DONE and run.method != DENSE]
    unique = {id(run): run for run in order if run.folder is not None or run.series}
    last = [run for one in sets for run in one.dense.runs if run.folder is not None or run.series][:1]
    return [*list(unique.values())[: CLOSELY - len(last)], *last]


def glance_at(runs: list[ReportedRun], skipped: Skipped) -> None:
    """Read a few lines of each run, with several processes where there are many."""
    at_hand = [run for run in runs if run.folder is not None]
    processes = min(4, os.cpu_count() or 1)
    if len(at_hand) < MANY or processes < 2 or not may_fork():
        for run in at_hand:
            glance(run, skipped)
        return
    with ProcessPoolExecutor(processes) as pool:
        for run, (seen, faults) in zip(at_hand, pool.map(glanced, at_hand, chunksize=8), strict=True):
            vars(run).update(vars(seen))
            skipped.merge(faults)


def may_fork() -> bool:
    """Return whether this process may fork: one that has loaded torch has threads, which a fork would lose."""
    return "torch" not in sys.modules


def glanced(run: ReportedRun) -> tuple[ReportedRun, list[Fault]]:
    """Read a few lines of a run in a process of its own; return the run and what was skipped."""
    skipped = Skipped()
    glance(run, skipped)
    return run, skipped.faults
