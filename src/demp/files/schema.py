"""From plain nested values to frozen dataclasses, with errors that name the key and the remedy."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from demp.errors import UsageError
from demp.files.checks import check_choice

T = TypeVar("T")

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from nested ``values``; ``where`` is the path shown in errors.

    Raises:
        UsageError: a key that the class has not, with a suggestion, or a value that does not fit its field.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} is {values!r}; give a table of values")
    hints = hints_of(cls)
    names = [entry.name for entry in fields(cls) if entry.init]  # pyright: ignore[reportArgumentType]
    arguments = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in names:
            raise UsageError(f"unknown config key {path!r}; {_suggest(key, hints, where)}")
        arguments[key] = convert(hints[key], value, path)
    return cls(**arguments)


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass."""
    return get_type_hints(cls)


def convert(kind: Any, value: Any, path: str) -> Any:
    """Return ``value`` as the type ``kind``: whole numbers become floats, lists tuples, nothing else.

    Raises:
        UsageError: it is of another type, or none of the choices.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return kind.parse(value) if isinstance(value, str) and hasattr(kind, "parse") else build(kind, value, path)  # type: ignore[attr-defined]
    if origin in (Union, UnionType):
        return _convert_union(inner, value, path)
    if origin is Literal:
        check_choice(path, value, inner)
        return value
    if origin is tuple:
        return _convert_tuple(inner, value, path)
    if origin is dict and not isinstance(value, Mapping):
        raise UsageError(f"{path} is {value!r}; give a table of values")
    return _convert_plain(kind, value, path)


def _convert_plain(kind: Any, value: Any, path: str) -> Any:
    if kind in WORDS and not _fits(kind, value):
        raise UsageError(f"{path} is {value!r}; give {WORDS[kind]}")
    return float(value) if kind is float else value


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return convert(kind, value, path)
            except UsageError as error:
                errors.append(error)
    raise errors[0]


def _convert_tuple(inner: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{path} is {value!r}; give a list of values in square brackets")
    kinds = (inner[0],) * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
    if len(kinds) != len(value):
        raise UsageError(f"{path} has {len(value)} values; give {len(kinds)}")
    return tuple(convert(kind, item, path) for kind, item in zip(kinds, value, strict=True))


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _suggest(key: str, hints: Mapping[str, Any], where: str) -> str:
    """The nearest key of this table by its whole path, else a key of that name in a table below."""
    prefix = f"{where}." if where else ""
    below = {name: f"{part}.{name}" for part, kind in hints.items() if is_dataclass(kind) for name in hints_of(kind)}
    close = get_close_matches(key, hints, 1)
    if key in below or close:
        return f"did you mean {prefix + (below[key] if key in below else close[0])!r}?"
    return f"known keys: {', '.join(hints)}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as one level with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with dotted names as nested ones: the inverse of `flat`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return found
