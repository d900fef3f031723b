"""From flags to a config: recipe < file < flags."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demp import recipes
from demp.budgets import Budget
from demp.errors import UsageError
from demp.files.schema import nested
from demp.train.config import TrainConfig, read_toml
from demp.train.models.trust import is_foreign, raise_if_untrusted

DEFAULT_RECIPE = "plain"
FLAGS = {
    "model": "model.name",
    "data": "data.name",
    "method": "method.name",
    "strength": "method.options.peak_strength",
    "budget": "method.options.budget",
    "noise": "method.options.peak_noise_std",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "steps": "steps",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "width": "model.width",
    "activation": "model.activation",
    "seed": "seed",
    "out": "out",
    "device": "device",
    "precision": "precision",
    "sink": "sinks",
}
"""The config field that each flag of `demp train` sets."""
SCALES_A_RECIPE = ("optimizer", "steps", "epochs", "width")
"""Flags that a recipe has rules for."""


def resolve(flags: Any, over: Mapping[str, Any] | None = None) -> TrainConfig:
    """The config that the flags of `demp train` ask for, or those that another command has of them.

    ``over`` holds values by dotted key that come last; where a recipe has a rule for a key, they act as its flag would.

    Raises:
        UsageError: flags contradict each other, or a value does not fit.
    """
    over = dict(over or {})
    given = {name: getattr(flags, name, None) for name in FLAGS}
    given |= {name: over.pop(FLAGS[name]) for name in SCALES_A_RECIPE if FLAGS[name] in over}
    given = {name: value for name, value in given.items() if value is not None and value != ""}
    if given.get("budget") and given.keys() & {"strength", "noise"}:
        raise UsageError("with --budget neurons fade, and --strength and --noise do nothing; leave them out")
    budget = given.pop("budget", None)
    if isinstance(budget, str):  # several are a comparison's, a run for each
        given["budget"] = Budget.parse(budget).text()
    if "sink" in given:
        given["sink"] = listed(given["sink"])
    if "steps" in given and "epochs" in given:
        raise UsageError("--steps and --epochs both say how long to train; give one of them")
    rules = {name: given.pop(name) for name in SCALES_A_RECIPE if name in given}
    rules |= {"noise_keeps": flags.noise_keeps} if flags.noise_keeps else {}
    config = recipes.get(flags.recipe or DEFAULT_RECIPE, **rules)
    if flags.config:
        config = config.merged(file_values(flags, config))
    config = config.merged(nested({FLAGS[name]: value for name, value in given.items()}))
    return config.merged(nested(parse_settings(flags.set))).merged(nested(over))


def file_values(flags: Any, base: TrainConfig) -> dict[str, Any]:
    """What the file of ``--config`` says; a model of the user's own in it takes ``--trust``, or ``--model``."""
    values = read_toml(flags.config)
    model = values.get("model")
    if not flags.trust and isinstance(model, Mapping):
        name, options = model.get("name", base.model.name), model.get("options")
        asked = {**(options if isinstance(options, Mapping) else {}), "name": flags.model or name}
        if not is_foreign(flags.model):
            raise_if_untrusted(asked, flags.config)
    return values


def listed(text: str) -> list[str]:
    """The names in one text, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; values are read as TOML, and as text where they are not.

    Raises:
        UsageError: one of them is not of that form.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{setting!r} is not KEY=VALUE; write for example schedule.name=cosine")
        found[key.strip()] = parsed(text)
    return found


def parsed(text: str) -> Any:
    """A value in TOML, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def parse_lists(settings: Iterable[str], example: str) -> dict[str, list[Any]]:
    """KEY=[VALUE, VALUE] pairs; texts need no quotes.

    Raises:
        UsageError: a value is no list.
    """
    found: dict[str, list[Any]] = {}
    for key, value in parse_settings(settings).items():
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            value = [parsed(part) for part in value[1:-1].split(",") if part.strip()]
        if not isinstance(value, list):
            raise UsageError(f"{key}={value} is no list of values; write for example {example}")
        found[key] = value
    return found


def free_folder(name: str, parent: str = "runs") -> Path:
    """``runs/name``, or ``runs/name-2`` and so on when that is taken."""
    path, number = Path(parent) / name, 1
    while path.exists():
        number += 1
        path = Path(parent) / f"{name}-{number}"
    return path
