"""Figures and tables of the paper as `demp study` leaves them (`demp.files.study`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.files.reading import JsonObject, Skipped, number, read_json
from demp.files.study import NAMES, RESULTS, SCALES, SCHEMA

SMOKE = SCALES[0]
VERDICTS = {True: "holds", False: "does not hold", None: "open"}


@dataclass(frozen=True)
class ClaimSummary:
    """A sentence that numbers can contradict."""

    study: str
    sentence: str
    paper: str
    ours: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """Return in words whether the claim holds."""
        return VERDICTS[self.holds]


@dataclass(frozen=True)
class StudySummary:
    """One figure or table of the paper."""

    id: str
    title: str
    section: str
    scale: str
    remark: str
    runs: str
    """How many of how many."""
    claims: tuple[ClaimSummary, ...]
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    figure: bytes = b""
    """As SVG."""


def is_study(file: Path) -> bool:
    """Return whether this file is the summary of a study, by its name."""
    return file.suffix == ".json" and file.is_file() and (NAMES.fullmatch(file.stem) is not None)


def place_of(name: str) -> Path:
    """Return the file of results of the study with this id: that of the largest scale at hand.

    Raises:
        UsageError: there are none.
    """
    for scale in reversed(SCALES):
        for kind in ("json", "jsonl"):
            file = Path(RESULTS, scale, f"{name}.{kind}")
            if file.is_file():
                return file
    raise UsageError(f"there are no results of {name} in {RESULTS}; make them with: demp study {name}")


def read_study(file: Path, skipped: Skipped) -> StudySummary | None:
    """Read the summary of a study; return None where the file is none."""
    values = read_json(file, skipped)
    if not values:
        return None
    entries = values.get("claims")
    if values.get("schema") != SCHEMA or not isinstance(entries, list):
        skipped.add(file, f"no study of schema {SCHEMA}")
        return None
    name = text(values.get("id")) or file.stem
    done, planned = number(values, "done"), number(values, "planned")
    table = values.get("table") if isinstance(values.get("table"), dict) else {}
    return StudySummary(
        id=name,
        **{key: text(values.get(key)) for key in ("title", "section", "scale", "remark")},
        runs=f"{done:.0f} of {planned:.0f} runs" if done is not None and planned is not None else "",
        claims=tuple(claims_of(name, entries, file, skipped)),
        **table_of(table or {}),
        figure=figure_of(values, file),
    )


def claims_of(name: str, entries: list[Any], file: Path, skipped: Skipped) -> Iterator[ClaimSummary]:
    """Yield every claim; entries that are none are named."""
    for index, entry in enumerate(entries, 1):
        holds = entry.get("holds") if isinstance(entry, dict) else ""
        if (
            not isinstance(entry, dict)
            or not text(entry.get("sentence"))
            or not (holds is None or holds in (True, False))
        ):
            skipped.add(file, f"claim {index} is no claim")
        else:
            sentence, paper, ours = (text(entry.get(key)) for key in ("sentence", "paper", "ours"))
            yield ClaimSummary(name, sentence, paper, ours, None if holds is None else bool(holds))


def table_of(table: JsonObject) -> dict[str, Any]:
    """Return headings, the rows that are as long as these, and notes."""
    headings, rows, notes = (
        table.get(key) if isinstance(table.get(key), list) else [] for key in ("headings", "rows", "notes")
    )
    whole = [row for row in rows or [] if isinstance(row, list) and len(row) == len(headings or [])]
    return {
        "headings": tuple(text(heading) for heading in headings or []),
        "rows": tuple(tuple(text(cell) for cell in row) for row in whole),
        "notes": tuple(text(note) for note in notes or []),
    }


def figure_of(values: JsonObject, file: Path) -> bytes:
    """Return the figure of a study as SVG, if there is one beside its summary."""
    figure = file.with_suffix(".svg")
    files = values.get("files")
    if isinstance(files, list) and figure.name in files and figure.is_file():
        return figure.read_bytes()
    return b""


def text(value: Any) -> str:
    """Return a value as a reader sees it; nothing for lists and tables."""
    if value is None or isinstance(value, dict | list):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
