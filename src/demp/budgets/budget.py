"""A budget: what the network that comes out may cost, as shares of the dense network or as absolute numbers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from demp.errors import UsageError

UNITS = {
    "flops": "FLOPs of one forward of the example inputs (2 per multiply-add, from real shapes)",
    "parameters": "entries of all parameters",
    "neurons": "neurons over all layers",
    "memory": "bytes of parameters and buffers",
    "latency": "microseconds of one forward of the example inputs on their device",
}
"""Resource -> what an absolute number of it counts."""
RESOURCES = tuple(UNITS)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be left at the end of a run; several at once: all must hold.

    A float is a share of the dense network in (0, 1], an int an absolute number of the resource's unit (``UNITS``).

    >>> Budget(flops=0.4, parameters=1_000_000)
    Budget(flops=0.4, parameters=1000000)
    """

    flops: int | float | None = None
    parameters: int | float | None = None
    neurons: int | float | None = None
    memory: int | float | None = None
    latency: int | float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            object.__setattr__(self, name, as_limit(name, value))
        if not self.given():
            raise UsageError(f"a budget needs at least one of {', '.join(RESOURCES)}, for example Budget(flops=0.4)")

    def given(self) -> dict[str, float | int]:
        """Return the limit of each resource that has one, by the resource's name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def to_dict(self) -> dict[str, float | int]:
        """Return the limits by name, ready for JSON; ``as_budget`` reads them back."""
        return self.given()

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Return the budget that a text such as ``"flops=0.4,neurons=0.5"`` describes.

        With a point or an exponent a number is a share of the dense network, else it is absolute.

        Raises:
            UsageError: an unknown resource, one that is given twice, or a number that is no limit.
        """
        found = as_budget(text)
        assert found is not None
        return found

    def text(self) -> str:
        """Return the budget as text, which ``parse`` reads back."""
        return ",".join(f"{name}={value!r}" for name, value in self.given().items())

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.given().items())


def as_limit(name: str, value: Any) -> int | float:
    """A share or an absolute number as Python's own number, also from NumPy's.

    Raises:
        UsageError: ``value`` cannot limit a resource.
    """
    whole = isinstance(value, Integral)
    if whole and not isinstance(value, bool) and int(value) >= 1:
        return int(value)
    if isinstance(value, Real) and not whole and 0 < float(value) <= 1:
        return float(value)
    raise UsageError(
        f"the budget {name}={value!r} is no limit; give a share of the dense network as a float in (0, 1], for example "
        f"{name}=0.4, or an absolute number of {UNITS[name].split(' (')[0]} as an int of at least 1"
    )


def as_budget(value: Any) -> Budget | None:
    """A budget from what a config, a file or a command line holds: a Budget, a mapping, or ``"flops=0.4,neurons=0.5"``.

    Raises:
        UsageError: anything else, an unknown resource, one that is given twice, a number that is no limit.
    """
    if value is None or isinstance(value, Budget):
        return value
    if isinstance(value, str):
        pairs = [pair(part) for part in value.split(",") if part.strip()]
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise UsageError(f"the budget {value!r} gives {twice[0]} twice; give each resource once")
        value = dict(pairs)
    if not isinstance(value, Mapping):
        raise UsageError(f"budget is a {type(value).__name__}; give demp.Budget(flops=0.4), for example")
    for name in value:
        if name not in RESOURCES:
            raise UsageError(f"unknown resource {name!r} in the budget; choose among {', '.join(RESOURCES)}")
    return Budget(**value)


def pair(text: str) -> tuple[str, float | int]:
    """``"flops=0.4"`` as a name and a number: with a point or an exponent a share, else an absolute number."""
    name, _, number = (part.strip() for part in text.partition("="))
    try:
        return name, int(number) if number.lstrip("+-").isdigit() else float(number)
    except ValueError:
        raise UsageError(
            f"the budget {text.strip()!r} is not of the form RESOURCE=NUMBER; write flops=0.4, for example"
        ) from None
