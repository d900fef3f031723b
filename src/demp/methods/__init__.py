"""Which neurons go: one file per method, found by name."""

import difflib
import importlib
import pkgutil
from functools import cache
from typing import Any

from demp.errors import UsageError
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.combination import combined
from demp.methods.earlier import moved_name
from demp.methods.masks import MaskMethod

__all__ = [
    "MaskMethod",
    "Method",
    "MethodConfig",
    "Selection",
    "View",
    "Requirements",
    "config_class",
    "create",
    "find",
    "names",
]


@cache
def registry() -> dict[str, type[Method]]:
    """Every method in this package, by its registry name."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Method) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def __getattr__(name: str) -> Any:
    """Return what version 0.1 called ``Wants``, with a DeprecationWarning."""
    return moved_name(__name__, name)


def names() -> list[str]:
    """Every registered method; ``find`` also knows combinations of two."""
    return list(registry())


def find(name: str) -> type[Method]:
    """The method called ``name``; ``a+b`` is a method that removes neurons with one that masks weights, as demp+rigl.

    Raises:
        UsageError: there is none (with a suggestion), or the two do not go together.
    """
    first, plus, second = name.partition("+")
    if plus:
        return combined(single(first, name), single(second, name))
    return single(name, name)


def single(part: str, name: str) -> type[Method]:
    """The registered method called ``part``, for one who asked for ``name``.

    Raises:
        UsageError: there is none (with a suggestion).
    """
    methods = registry()
    if part not in methods:
        near = difflib.get_close_matches(part, methods, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(methods)}"
        within = "" if part == name else f" in {name!r}"
        raise UsageError(f"unknown method {part!r}{within}; {hint}")
    return methods[part]


def config_class(name: str) -> type[MethodConfig]:
    """The config dataclass of a method."""
    return find(name).Config


def create(
    name: str, model: Any, optimizer: Any, *, example_inputs: Any, total_steps: int, config: Any = None, **options: Any
) -> Any:
    """A pruner that runs the method ``name`` on this model and optimizer: the same signature for all methods.

    ``config`` is the method's config; its fields may also be given as keyword arguments, next to the pruner's own
    (``batches``, ``attach``, ``copies``, ``seed``, ``on_error``,
    ``alive_in_copies``).
    """
    from demp.pruner import factory as creation

    return creation.create(
        find(name), model, optimizer, example_inputs=example_inputs, total_steps=total_steps, config=config, **options
    )
