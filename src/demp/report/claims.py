"""Claims of the paper with its number beside ours, as studies write them.

A file ``claims.json`` beside the results, or ``STUDY.claims.json`` beside ``STUDY.jsonl``: ``{"schema": 1, "study",
"title", "section", "scale", "claims": [{"sentence", "paper", "ours", "holds": true | false | null}]}``. ``null``: our
runs do not say.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demp.report.lines import Skipped, read_json

SCHEMA = 1
VERDICTS = {True: "holds", False: "does not hold", None: "open"}


@dataclass(frozen=True)
class Claim:
    """A sentence that numbers can contradict."""

    study: str
    sentence: str
    paper: str
    ours: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """In words."""
        return VERDICTS[self.holds]


@dataclass(frozen=True)
class Study:
    """One figure or table of the paper."""

    id: str
    title: str
    section: str
    scale: str
    claims: tuple[Claim, ...]


def read_study(file: Path, skipped: Skipped) -> Study | None:
    """The claims of one study; None where the file holds none."""
    values = read_json(file, skipped)
    if not values:
        return None
    entries = values.get("claims")
    if values.get("schema") != SCHEMA or not isinstance(entries, list):
        skipped.add(file, "no claims of schema 1")
        return None
    name = text(values.get("study")) or file.name.partition(".")[0]
    claims = []
    for index, entry in enumerate(entries, 1):
        holds = entry.get("holds") if isinstance(entry, dict) else ""
        if not isinstance(entry, dict) or not text(entry.get("sentence")) or holds not in (True, False, None):
            skipped.add(file, f"claim {index} is no claim")
            continue
        claims.append(Claim(name, text(entry["sentence"]), text(entry.get("paper")), text(entry.get("ours")), holds))
    about = {key: text(values.get(key)) for key in ("title", "section", "scale")}
    return Study(id=name, **about, claims=tuple(claims))


def text(value: Any) -> str:
    """What a reader sees of a value."""
    if value is None or isinstance(value, dict | list):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
