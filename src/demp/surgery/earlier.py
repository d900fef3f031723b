"""Options by the names that they had in version 0.1: each works, with a DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def names_of_today(function: Function) -> Function:
    """A function that also takes options by the names that they had in version 0.1."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        return function(*args, **of_today(options))

    return called  # type: ignore[return-value]


def of_today(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names of today: ``copies`` for ``holders``, ``resume=True`` for ``fresh=False``."""
    if options.keys() & {"holders", "fresh"}:
        options = dict(options)
        if "holders" in options:
            warnings.warn("holders= is now copies=", DeprecationWarning, stacklevel=3)
            options["copies"] = options.pop("holders")
        if "fresh" in options:
            warnings.warn("fresh=False is now resume=True", DeprecationWarning, stacklevel=3)
            options["resume"] = not options.pop("fresh")
    return options
