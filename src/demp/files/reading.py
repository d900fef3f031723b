"""JSON and JSON lines as runs and sweeps leave them: whatever is no record is skipped, counted and named."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]
NO_OBJECT = "no JSON object"
NAMED = 5
"""Line numbers of one file that are named; the rest is counted."""
WHOLE_BYTES = 512 * 1024
"""A file up to this size is read line by line also where a look would do."""
BLOCK_BYTES = 4 * 2**20
LARGEST = 1e40
"""Numbers beyond are faults of whoever wrote them: nothing that is measured comes near."""
LOOKS = 64
"""Lines that a look at a long file takes, evenly spread."""


@dataclass
class Fault:
    """The lines of one file that are no records, for one reason."""

    file: str
    reason: str
    count: int = 0
    numbers: list[int] = field(default_factory=list)
    """The first line numbers, from 1; empty where the whole file is meant."""

    def __str__(self) -> str:
        if not self.numbers:
            return f"{self.file}: {self.reason}"
        more = ", ..." if self.count > len(self.numbers) else ""
        lines = f"line{'s' * (self.count > 1)} {', '.join(map(str, self.numbers))}{more}"
        return f"{self.file}: {lines}: {self.reason}"


class Skipped:
    """All that was left out, by file and reason."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], Fault] = {}

    def add(self, file: Path, reason: str, number: int | None = None) -> None:
        """Count one line of a file, or the whole file."""
        fault = self._faults.setdefault((str(file), reason), Fault(str(file), reason))
        fault.count += 1
        if number is not None and len(fault.numbers) < NAMED:
            fault.numbers.append(number)

    def merge(self, faults: list[Fault]) -> None:
        """Take over what another process skipped."""
        for fault in faults:
            self._faults[fault.file, fault.reason] = fault

    @property
    def faults(self) -> list[Fault]:
        """Everything that was skipped, ordered by file."""
        return sorted(self._faults.values(), key=lambda fault: (fault.file, fault.numbers))

    @property
    def lines(self) -> int:
        """The number of lines that were skipped."""
        return sum(fault.count for fault in self._faults.values() if fault.numbers)


Check = Callable[[JsonObject], str]
"""Why an object is no record of the kind that is wanted; empty where it is one."""


def any_object(_: JsonObject) -> str:
    """Accept every JSON object: return the empty text of no fault."""
    return ""


def records(path: Path, skipped: Skipped, check: Check = any_object) -> Iterator[JsonObject]:
    """Yield every record of a file; a file that is not there has none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        skipped.add(path, f"cannot be read ({error.strerror})")
        return
    with file:
        for number, line in enumerate(file, 1):
            record, reason = parsed(line, check)
            if record is not None:
                yield record
            elif reason:
                skipped.add(path, reason, number)


def parsed(line: bytes, check: Check = any_object) -> tuple[JsonObject | None, str]:
    """Return the record in a line, or None and the reason; an empty line is no fault and has no reason."""
    if not line.strip():
        return None, ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, "half-written" if not line.endswith(b"\n") else "not JSON"
    if not isinstance(record, dict):
        return None, NO_OBJECT
    reason = check(record)
    return (None, reason) if reason else (record, "")


def look(path: Path, skipped: Skipped, wanted: bytes, check: Check = any_object) -> list[JsonObject]:
    """Return some records of a long file: the lines with ``wanted``, the last one, and others evenly spread.

    A short file, and one whose lines do not all look like objects, is read line by line.
    """
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    seen = looked(path, size, wanted, check) if size > WHOLE_BYTES else None
    return list(records(path, skipped, check)) if seen is None else seen


def looked(path: Path, size: int, wanted: bytes, check: Check) -> list[JsonObject] | None:
    """Return these records; None where some line does not begin as an object and end as one."""
    stride, due = size / LOOKS, 0.0
    found: list[JsonObject] = []
    with path.open("rb") as file:
        for start, block in blocks(file):
            if not (block.startswith(b"{") and block.endswith(b"}\n")):
                return None
            if block.count(b"\n") != block.count(b"}\n{") + 1:
                return None
            picked = {line_start(block, len(block) - 1)}
            while due < start + len(block):
                picked.add(line_start(block, max(0, int(due) - start)))
                due += stride
            at = block.find(wanted)
            while at >= 0:
                picked.add(line_start(block, at))
                at = block.find(wanted, at + len(wanted))
            for at in sorted(picked):
                record, reason = parsed(block[at : block.find(b"\n", at) + 1], check)
                if reason:
                    return None
                if record is not None:
                    found.append(record)
    return found


def blocks(file: Any) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of whole lines: where each begins in the file, and its bytes."""
    start = 0
    while block := file.read(BLOCK_BYTES):
        if not block.endswith(b"\n"):
            block += file.readline()
        yield start, block
        start += len(block)


def line_start(block: bytes, at: int) -> int:
    """Return where the line begins that holds position ``at``."""
    return block.rfind(b"\n", 0, at) + 1


def read_json(path: Path, skipped: Skipped) -> JsonObject:
    """Return the object in a JSON file; an empty one where there is none, and the file is named if it is damaged."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        skipped.add(path, f"cannot be read ({error.strerror})")
        return {}
    except (ValueError, RecursionError):
        skipped.add(path, "not JSON")
        return {}
    if not isinstance(values, dict):
        skipped.add(path, NO_OBJECT)
        return {}
    return values


def number(values: Mapping[str, Any], name: str) -> float | None:
    """Return the value of that name if it is a finite number of a possible size, else None."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) < LARGEST:  # nor nan
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0  # so that a ratio of two is a number, too
