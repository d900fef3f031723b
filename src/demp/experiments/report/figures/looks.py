"""What all figures of one report share: the colour and mark of every method, and the words of axes."""

from collections.abc import Iterable
from dataclasses import dataclass

from demp.experiments.report.groups import RunGroup
from demp.experiments.report.svg import SERIES
from demp.experiments.report.words import percent
from demp.files.run import DENSE


@dataclass(frozen=True)
class Looks:
    """Method -> number of its colour and mark; dense is grey and has none."""

    order: tuple[str, ...]
    key: str = ""
    """What makes names of things in these figures unique on a page."""

    @classmethod
    def of(cls, groups: Iterable[RunGroup], key: str = "") -> "Looks":
        """In the order in which methods come."""
        return cls(tuple(dict.fromkeys(group.method for group in groups if group.method != DENSE)), key)

    def shape(self, method: str) -> int:
        """Changes with the colour, and again where colours repeat."""
        index = self.order.index(method)
        return index + index // SERIES

    def first(self, methods: Iterable[str]) -> int:
        """Which of these comes first, by its number; 0 where there is none but dense."""
        return min((self.order.index(name) for name in methods if name != DENSE), default=0)

    def kind(self, method: str) -> str:
        """Return the CSS class of the method's colour."""
        return "dense" if method == DENSE else f"s{self.order.index(method) % SERIES}"

    def legend(self, methods: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """Colour, shape and name of each."""
        wanted = set(methods)
        shown = [(f"{self.kind(name)} {self.shape(name) % 4}", name) for name in self.order if name in wanted]
        return tuple(shown) + ((("dense 4", DENSE),) if DENSE in wanted else ())


def whole_percent(value: float) -> str:
    """Of a share, without a point where there is none."""
    places = 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1
    return percent(value, places)
