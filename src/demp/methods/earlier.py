"""What version 0.1 called requirements: a method that says ``wants()`` works, with one DeprecationWarning."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demp.methods.requirements import Requirements


@dataclass(frozen=True, kw_only=True)
class Wants(Requirements):
    """`Requirements` under its earlier name, with what a `MaskMethod` says otherwise today."""

    masks: bool = False
    """It masks weights: read no more, since its class says so."""
    skip_updates: bool = False
    """The optimizer moves nothing on the steps on which masks change."""


class EarlierMethod:
    """Lets a method answer under the name of version 0.1, and be asked under it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own: Any = vars(cls)
        if "requirements" in own and "wants" not in own:
            cls.wants = asked_as_wants(own["requirements"])  # pyright: ignore[reportAttributeAccessIssue]
        elif "wants" in own and "requirements" not in own:
            text = f"{cls.__name__}.wants() is now requirements(): rename the method"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            cls.requirements = own["wants"]  # pyright: ignore[reportAttributeAccessIssue]


def asked_as_wants(requirements: Callable[[Any], Requirements]) -> Callable[[Any], Requirements]:
    """The method ``wants()`` of a class with these ``requirements()``; silent where a ``wants()`` on top of it asks."""

    def wants(self: Any) -> Requirements:
        if type(self).wants is wants:
            warnings.warn("wants() is now requirements()", DeprecationWarning, stacklevel=2)
        return requirements(self)

    return wants


def moved_name(module: str, name: str) -> Any:
    """`Wants` for those who import it from a module of this package, with a DeprecationWarning.

    Raises:
        AttributeError: another name is asked for, which the module does not have.
    """
    if name != "Wants":
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{module}.Wants is now {module}.Requirements", DeprecationWarning, stacklevel=3)
    return Wants
