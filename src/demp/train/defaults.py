"""Options whose default has changed: what a config meant that was written before, and how to tell it from a later one.

Every config that is written down now says these options, so that one without them is known to be older.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

from demp import methods
from demp.errors import UsageError
from demp.train.config import DENSE, MethodConfig, TrainConfig

BEFORE = {"epoch_of": "data", "as_published": False}
"""Option of a method -> its default until it changed."""


def written_out(config: TrainConfig) -> TrainConfig:
    """The config with each of these options written out that its method has."""
    missing = left_out(config.method.name, config.method.options)
    if not missing:
        return config
    options = {**config.method.options, **missing}
    return replace(config, method=MethodConfig(name=config.method.name, options=options))


def as_meant(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a config that was kept; what it does not say of these options is as it was then."""
    method = values.get("method")
    if not isinstance(method, Mapping):
        return dict(values)
    options = method.get("options", {})
    try:
        missing = {name: BEFORE[name] for name in left_out(method.get("name", ""), options)}
    except UsageError:  # no method of ours: what builds the config raises
        return dict(values)
    return {**values, "method": {**method, "options": {**options, **missing}}} if missing else dict(values)


def left_out(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of these options that a method has and that are not given, with today's default."""
    return {name: default for name, default in _defaults(method).items() if name not in options}


@cache
def _defaults(method: str) -> dict[str, Any]:
    if method == DENSE:
        return {}
    return {field.name: field.default for field in fields(methods.config_class(method)) if field.name in BEFORE}
