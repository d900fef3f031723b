"""What a forward leaves behind, on modules and in caches of the code: taken away where the forward was demp's own."""

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from demp.graph.inputs import tensors_in

CACHE = functools._lru_cache_wrapper
OWN = frozenset({"torch", "demp", "builtins", "typing", "abc"})
"""Packages whose code keeps nothing of a model's forward."""


@contextmanager
def leaving_nothing(model: nn.Module) -> Iterator[list[Tensor]]:
    """Takes away what a forward leaves on modules (caches, kept features), and lists the tensors among it.

    Tables of the modules and classes in which the model's code stands are as before, too, and caches of functions that
    took something in are empty: what they hold would lie on the device of this forward.
    """
    spaces = [vars(module) for module in model.modules()]
    spaces += [value for space in spaces for value in space.values() if isinstance(value, (dict, list))]
    code = packages_of(model)
    caches = {id(cache): (cache, cache.cache_info().misses) for cache in caches_in(code)}
    tables = tables_in(code, {kind.__module__ for kind in kinds_of(model)})
    before = [(space, list(space) if isinstance(space, list) else dict(space)) for space in (*spaces, *tables)]
    left: list[Tensor] = []
    try:
        yield left
    finally:
        for space, old in before:
            left.extend(restored(space, old))
        for cache, misses in caches.values():
            if cache.cache_info().misses > misses:
                cache.cache_clear()


def restored(space: Any, old: Any) -> list[Tensor]:
    """Put back what a dict or list held; the tensors among what was new."""
    if not (space or old) or list(map(id, values_of(space))) == (known := list(map(id, values_of(old)))):
        return []
    fresh = [value for value in values_of(space) if id(value) not in known]
    if fresh or len(space) != len(old):
        space.clear()
        space.extend(old) if isinstance(space, list) else space.update(old)
    return tensors_in(fresh)


def values_of(space: Any) -> Any:
    """What a dict or a list holds."""
    return space.values() if isinstance(space, dict) else space


def kinds_of(model: nn.Module) -> set[type]:
    """The classes of a model's modules and their bases, but for torch's."""
    kinds = {kind for own in {type(module) for module in model.modules()} for kind in own.__mro__}
    return {kind for kind in kinds if kind.__module__.partition(".")[0] not in OWN}


def packages_of(model: nn.Module) -> tuple[ModuleType, ...]:
    """All loaded modules of the packages in which the model's code stands."""
    roots = frozenset(kind.__module__.partition(".")[0] for kind in kinds_of(model))
    name, newest = next(reversed(sys.modules.items()))
    return loaded_in(roots, (len(sys.modules), name, id(newest)))


@functools.lru_cache(maxsize=4)
def loaded_in(roots: frozenset[str], loaded: tuple[int, str, int]) -> tuple[ModuleType, ...]:
    """The modules of these packages; searched for again when ``loaded``, how many there are and the newest, differs."""
    within = tuple(f"{root}." for root in roots)
    found = [code for name, code in list(sys.modules.items()) if name.startswith(within) or name in roots]
    return tuple(code for code in found if isinstance(code, ModuleType))


def caches_in(code: Sequence[ModuleType]) -> Iterator[Any]:
    """Caches of the functions and methods that keep their results (``functools.lru_cache``)."""
    for module in code:
        for value in list(vars(module).values()):
            yield from caches_of(value)
            if isinstance(value, type) and value.__module__ == module.__name__:
                for method in list(vars(value).values()):
                    yield from caches_of(method)


def caches_of(function: Any) -> list[Any]:
    """Those of one function, which a decorator may have put around it."""
    function = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    if type(function) is CACHE:
        return [function]
    if not isinstance(function, FunctionType) or function.__closure__ is None:
        return []
    return [cache for cell in function.__closure__ if type(cache := content(cell)) is CACHE]


def content(cell: CellType) -> Any:
    """What a closure's cell holds; None if it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def tables_in(code: Sequence[ModuleType], names: set[str]) -> Iterator[Any]:
    """Dicts and lists that these modules, or classes of theirs, hold by name."""
    for module in code:
        if module.__name__ in names:
            values = [value for name, value in list(vars(module).items()) if not name.startswith("__")]
            kinds = [value for value in values if isinstance(value, type) and value.__module__ == module.__name__]
            values += [value for kind in kinds for value in list(vars(kind).values())]
            yield from (value for value in values if type(value) in (dict, list))
