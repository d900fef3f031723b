"""The form of values that were read from JSON: what each part of a file may be."""

from collections.abc import Iterable, Mapping
from typing import Any


class Misfit(Exception):
    """What is wrong with a part of the file."""


def need(holds: object, what: str) -> None:
    """A file is as it must be if this ``holds``; ``what`` is wrong with it otherwise.

    Raises:
        Misfit: it does not hold.
    """
    if not holds:
        raise Misfit(what)


def is_size(value: Any, least: int = 0) -> bool:
    """A whole number that can be the length of an axis."""
    return type(value) is int and least <= value < 2**48


def sizes(values: Any, what: str, least: int = 0) -> list[int]:
    """A list of lengths or of places."""
    need(isinstance(values, list) and all(is_size(value, least) for value in values), f"{what} is no list of sizes")
    return values


def table(values: Any, what: str) -> Mapping[str, Any]:
    """Return the values if they are a JSON object, and refuse anything else."""
    need(isinstance(values, dict), f"{what} is no object")
    return values


def items(values: Any, what: str) -> Iterable[tuple[str, Any]]:
    """The entries of an object."""
    return table(values, what).items()
