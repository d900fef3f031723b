"""Checks of config values: each refusal is one sentence that names the field, its value and what to give instead."""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from demp.errors import UsageError
from demp.files.suggestion import suggestion


def check(ok: bool, name: str, value: object, remedy: str) -> None:
    """Refuse the value of the field ``name`` unless it is ``ok``.

    Raises:
        UsageError: it is not; every other check here raises it by way of this one.
    """
    if not ok:
        raise UsageError(f"{name} is {value!r}; {remedy}")


def check_number(name: str, number: float) -> None:
    """The number must be finite and not negative."""
    check(math.isfinite(number) and number >= 0, name, number, "give a finite number >= 0")


def check_above(name: str, number: float, low: float = 0.0) -> None:
    """The number must be finite and above ``low``."""
    check(math.isfinite(number) and number > low, name, number, f"give a number above {low:g}")


def check_at_least(name: str, number: float, least: float) -> None:
    """The number must be finite and not below ``least``."""
    check(math.isfinite(number) and number >= least, name, number, f"give at least {least:g}")


def check_share(name: str, share: float) -> None:
    """The share must lie strictly between 0 and 1."""
    check(0 < share < 1, name, share, "give a share in (0, 1)")


def check_portion(name: str, share: float, what: str = "a share") -> None:
    """The share must lie between 0 and 1, both included; ``what``: of what it is a share, for the message."""
    check(0 <= share <= 1, name, share, f"give {what} in [0, 1]")


def check_choice(name: str, choice: object, choices: Collection[Any]) -> None:
    """The value must be one of the choices; a near miss gets a suggestion."""
    if choice not in choices:
        known = [str(one) for one in choices if one is not None]
        check(False, name, choice, f"choose one of {', '.join(known)}{suggestion(str(choice), known)}")


def check_choices(values: object, of: str = "") -> None:
    """Every field of a dataclass whose type is a ``Literal``, or a tuple of one, must have one of its values.

    ``of`` precedes the field's name: a word, or a path that ends in a dot.
    """
    before = f"{of} " if of and not of.endswith(".") else of
    for name, choices in choices_of(type(values)).items():
        value = getattr(values, name)
        for one in value if isinstance(value, tuple) else (value,):
            check_choice(f"{before}{name}", one, choices)


@cache
def choices_of(cls: Any) -> Mapping[str, tuple[Any, ...]]:
    """Field name -> the values that it may have, for those fields of a dataclass whose type is a ``Literal``.

    Of a tuple of them, the values that each of its entries may have.
    """
    try:
        hints = get_type_hints(cls)
    except NameError:  # a class of the user's, whose names are known to a type checker alone
        hints = {entry.name: entry.type for entry in fields(cls)}
    found = {entry.name: literals(hints[entry.name]) for entry in fields(cls)}
    return {name: choices for name, choices in found.items() if choices}


def literals(kind: Any) -> tuple[Any, ...]:
    """The values of a ``Literal``, with None where the type allows that; nothing for any other type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,):
        return literals(get_args(kind)[0])
    if get_origin(kind) not in (Union, UnionType):
        return ()
    parts = [(None,) if part is type(None) else literals(part) for part in get_args(kind)]
    return () if () in parts else tuple(value for part in parts for value in part)
