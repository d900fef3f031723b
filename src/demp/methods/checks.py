"""What configs check: each refusal names the field and what to give instead."""

import math

from demp.errors import UsageError


def check_number(name: str, number: float) -> None:
    """Finite and not negative."""
    if not (math.isfinite(number) and number >= 0):
        raise UsageError(f"{name} is {number}; give a finite number >= 0")


def check_at_least(name: str, number: int, least: int) -> None:
    """Not below ``least``."""
    if not number >= least:
        raise UsageError(f"{name} is {number}; give at least {least}")


def check_share(name: str, share: float) -> None:
    """Strictly between 0 and 1."""
    if not 0 < share < 1:
        raise UsageError(f"{name} is {share}; give a share in (0, 1)")


def check_choice(name: str, choice: str, choices: tuple[str, ...]) -> None:
    """One of the choices."""
    if choice not in choices:
        raise UsageError(f"{name} is {choice!r}; choose one of {', '.join(choices)}")
