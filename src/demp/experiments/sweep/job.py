"""A piece of work to be done once, in plain values that a file can hold."""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from demp.errors import UsageError
from demp.renamed import renamed

NOT_IN_NAMES = '/\\\0\n:*?"<>|'
LONGEST_NAME = 150


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of a function, with labels that distinguish it from other jobs. All values are JSON-ready."""

    name: str
    """Of its folder; unique in a sweep."""
    work: str
    """``module:function``, called as ``function(arguments, folder, observers)``; it returns the result, a dict.

    ``folder`` is its own and may hold what an earlier, interrupted call left; ``observers`` watch a training and ask it
    to stop (`demp.train.Observer`): at a signal, too, which otherwise waits for its end unless a second one comes.
    """
    arguments: dict[str, Any] = field(default_factory=dict)
    """All that decides the result."""
    labels: dict[str, Any] = field(default_factory=dict)
    """What distinguishes it in tables and figures."""

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip(". ") or set(self.name) & set(NOT_IN_NAMES):
            raise UsageError(f"the job {self.name!r} cannot be the name of a folder; use letters, digits and -=._")

    @cached_property
    def identity(self) -> str:
        """Hash of work and arguments: equal for equal jobs, whatever they are called."""
        return hashlib.sha256(json.dumps([self.work, self.arguments], sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain values; `from_dict` reads them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Job":
        """Return the job that `to_dict` wrote."""
        return cls(**{name: values[name] for name in ("name", "work", "arguments", "labels")})

    def about(self) -> dict[str, Any]:
        """Return what a line of results says of the job: its identity and all its values."""
        return {"identity": self.identity, **self.to_dict()}


def name_of(*parts: object) -> str:
    """Return a job's name from its labels: joined by ``-``, fit for a folder; one too long ends in a hash."""
    name = "-".join(str(part) for part in parts)
    name = "".join("_" if sign in NOT_IN_NAMES else sign for sign in name).strip(". ")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def function(work: str) -> Any:
    """Return the function that ``module:function`` names.

    Raises:
        UsageError: there is no such function.
    """
    module, colon, name = work.partition(":")
    if not colon:
        raise UsageError(f"the work {work!r} is not module:function")
    try:
        found: Any = getattr(importlib.import_module(renamed(module) or module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(f"the work {work!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(f"the module {module} has no function {name!r}")
    return found
