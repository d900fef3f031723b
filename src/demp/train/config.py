"""What a training run is: one frozen dataclass, read from and written to TOML.

A recipe (`demp.recipes`) returns a `TrainConfig`, a file overrides the recipe, flags override the
file. Every part checks itself, so a config that exists is a config that can run.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.files.checks import check, check_at_least, check_choices, check_number
from demp.files.schema import build, flat
from demp.train.choices import Precision, SinkName
from demp.train.extras import need
from demp.train.parts import (
    DENSE,
    AugmentConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    MonitorConfig,
    OptimizerConfig,
    ScheduleConfig,
)

__all__ = [
    "DENSE",
    "AugmentConfig",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "read_toml",
]

NOT_IDENTITY = ("seed", "out", "sinks")
"""Fields that do not change *which* experiment a run is; runs are grouped over them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the outcome of a run."""

    recipe: str = ""
    """Name of the recipe that this config came from: a note, but that a method which counts in epochs of the run takes
    their number from the paper's run of this recipe."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over time."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """The pruning."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Dead neurons over time; off unless it says how often."""
    steps: int = 0
    """Optimizer steps of the run; 0 counts epochs instead."""
    epochs: float = 0.0
    """Passes over the training split; 0 counts steps instead."""
    batch_size: int = 128
    """Images per optimizer step."""
    accumulate: int = 1
    """Parts into which a batch is split to fit in memory; their gradients add up."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    precision: Precision = "fp32"
    """fp32, bf16 (autocast) or fp16 (autocast with a gradient scaler)."""
    channels_last: bool = True
    """Memory layout of images and convolutions."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes the GPU when there is one."""
    seed: int = 0
    """Seed of the weights, the order of the data, its augmentation and the noise."""
    out: str = ""
    """Run folder; empty writes nothing (library) or runs/NAME (command line)."""
    sinks: tuple[SinkName, ...] = ()
    """Viewers that get the metrics besides metrics.jsonl: tensorboard, wandb, trackio."""
    log_every_steps: int = 50
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int = 0
    """Steps between tests on the whole test split; 0 tests at the end only."""
    eval_batch_size: int = 512
    """Images per batch of a test."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; a crash loses at most these."""

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise UsageError(f"steps is {self.steps} and epochs is {self.epochs:g}; give one of them a number above 0")
        check_number("steps", self.steps)
        check_number("epochs", self.epochs)
        for name in (
            "batch_size",
            "accumulate",
            "log_every_steps",
            "eval_batch_size",
            "checkpoint_every_steps",
        ):
            check_at_least(name, getattr(self, name), 1)
        check_number("eval_every_steps", self.eval_every_steps)
        even = self.batch_size % self.accumulate == 0
        check(even, "accumulate", self.accumulate, f"it must divide batch_size, {self.batch_size}")
        below_one = 0.0 <= self.label_smoothing < 1.0
        check(below_one, "label_smoothing", self.label_smoothing, "give a share in [0, 1)")
        check_choices(self)

    def total_steps(self, train_size: int) -> int:
        """Optimizer steps of the run on ``train_size`` images."""
        return self.steps or max(1, round(self.epochs * train_size / self.batch_size))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as in the TOML file; ``sinks`` only where there are some: no job differs by them."""
        values = json.loads(json.dumps(asdict(self)))
        return values if self.sinks else {key: value for key, value in values.items() if key != "sinks"}

    def to_toml(self) -> str:
        """The config as a TOML document; `from_toml` reads it back."""
        return need("tomli_w").dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Check keys and types of nested plain values.

        Raises:
            UsageError: a key that there is not, with a suggestion, or a value that does not fit.
        """
        return build(cls, values)

    @classmethod
    def from_toml(cls, path: str | Path) -> "TrainConfig":
        """Read the file at ``path``.

        Raises:
            UsageError: there is no such file, or see `from_dict`.
        """
        return cls.from_dict(read_toml(path))

    def merged(self, values: Mapping[str, Any]) -> "TrainConfig":
        """This config with some nested values replaced.

        Values that belong to a replaced choice go with it: another method or model drops the old
        one's options, another optimizer takes its own learning rate, another data set its own
        columns, steps replace epochs.
        """
        base = self.to_dict()
        _drop_replaced(base, values)
        return self.from_dict(_deep_merge(base, values))

    def identity(self) -> str:
        """Hash of all but the seed and the run folder: equal for repeats of one experiment."""
        kept = {key: value for key, value in self.to_dict().items() if key not in NOT_IDENTITY}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def changes(self, other: "TrainConfig") -> list[str]:
        """Each value in which ``other`` differs, run folder and sinks aside, as a phrase."""
        mine, theirs = flat(self.to_dict()), flat(other.to_dict())
        names = sorted((mine.keys() | theirs.keys()) - {"out", "sinks"})
        return [
            f"{name} was {mine.get(name)!r} and is {theirs.get(name)!r}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


BELONGS_TO_NAME = {
    "method": ("options",),
    "model": ("options",),
    "optimizer": ("lr",),
    "data": (
        "train_split",
        "test_split",
        "image_column",
        "label_column",
        "num_classes",
        "store_size",
    ),
}


def _drop_replaced(base: dict[str, Any], values: Mapping[str, Any]) -> None:
    for part, dependents in BELONGS_TO_NAME.items():
        given = values.get(part)
        if isinstance(given, Mapping) and given.get("name", base[part]["name"]) != base[part]["name"]:
            for name in dependents:
                base[part].pop(name)
    if ("steps" in values) != ("epochs" in values):
        base["epochs" if "steps" in values else "steps"] = 0


def _deep_merge(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _deep_merge(below, value)
        else:
            merged[key] = value
    return merged


def read_toml(path: str | Path) -> dict[str, Any]:
    """The nested values of a TOML file.

    Raises:
        UsageError: it is missing, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no config file {path}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config file {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
