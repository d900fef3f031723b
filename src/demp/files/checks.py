"""Checks of config values: each refusal is one sentence that names the field, its value and what to give instead."""

import math
from collections.abc import Collection

from demp.errors import UsageError
from demp.files.suggestion import suggestion


def check(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raise a `UsageError` about the field ``name`` unless ``ok``."""
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


def check_choice(name: str, choice: str, choices: Collection[str]) -> None:
    """The text must be one of the choices; a near miss gets a suggestion."""
    if choice not in choices:
        check(False, name, choice, f"choose one of {', '.join(choices)}{suggestion(str(choice), choices)}")
