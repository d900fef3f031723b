"""What the checks of a run have reported so far, those before a restart included."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from demp.surgery import CutReport


@dataclass(frozen=True)
class Past:
    """Of all checks so far: how many, how often each note came, and the cut that changed the outputs most."""

    checks: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    drift: float = 0.0
    """The largest, over the outputs' scale."""
    drift_at: int | None = None
    """The step of that cut."""
    copies: Mapping[str, float] = field(default_factory=dict)
    """Copy of the model -> the largest change of its outputs by one cut."""

    def then(self, history: Sequence[CutReport]) -> "Past":
        """The same once these checks were made, too."""
        notes = Counter(self.notes)
        notes.update(note for report in history for note in report.notes)
        cuts = [(report.drift or 0.0, report.step) for report in history if report.removed]
        drift, at = max([(self.drift, self.drift_at), *cuts], key=lambda pair: pair[0])
        copies = dict(self.copies)
        for name, change in (pair for report in history for pair in report.copies.items()):
            copies[name] = max(copies.get(name, 0.0), change or 0.0)
        return Past(self.checks + len(history), dict(notes), drift, at, copies)

    def without(self, history: Sequence[CutReport]) -> "Past":
        """What is left where these are counted apart."""
        notes = Counter(self.notes)
        notes.subtract(note for report in history for note in report.notes)
        left = {note: times for note, times in notes.items() if times > 0}
        return Past(max(0, self.checks - len(history)), left, self.drift, self.drift_at, self.copies)

    def state_dict(self) -> dict[str, Any]:
        """All fields, as plain values for a checkpoint."""
        return asdict(self)
