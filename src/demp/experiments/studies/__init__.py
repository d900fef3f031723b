"""The figures and tables of the paper, one file each: which jobs, which figure or table, which claims."""

import importlib
import pkgutil
import re
from functools import cache

from demp.errors import UsageError
from demp.experiments.studies.base import SCALES, Claim, Study, Table
from demp.files.suggestion import suggestion

__all__ = ["SCALES", "Claim", "Study", "Table", "find", "names"]


@cache
def registry() -> dict[str, type[Study]]:
    """Every study in this package by its id: figures and tables in the order of the paper, then the others."""
    found: dict[str, type[Study]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Study) and "id" in vars(value):
                found[value.id] = value
    return dict(sorted(found.items(), key=lambda item: in_order(item[0])))


def in_order(name: str) -> tuple[bool, str, int]:
    """fig2 before fig10, and both before what has no number."""
    word, number = re.fullmatch(r"(\D+)(\d*)", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return not number, word, int(number or 0)


def names() -> list[str]:
    """Return the ids of all studies, in their usual order."""
    return list(registry())


def find(name: str) -> Study:
    """The study with this id.

    Raises:
        UsageError: there is none (with a suggestion).
    """
    known = registry()
    plain = re.sub(r"[\s._-]|ure", "", name.lower())
    if plain not in known:
        hint = suggestion(plain, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"unknown study {name!r}{hint}")
    return known[plain]()
