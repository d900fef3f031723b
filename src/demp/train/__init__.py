"""The reference trainer: data, loop, checkpoints and run folders; built on the core.

Names are resolved on first use, so that what needs no torch (`demp report`) starts without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demp.train.config import (
        AugmentConfig,
        DataConfig,
        MethodConfig,
        ModelConfig,
        MonitorConfig,
        OptimizerConfig,
        ScheduleConfig,
        TrainConfig,
    )
    from demp.train.loop import TrainResult, resume, train
    from demp.train.losses import TrainingDiverged
    from demp.train.observer import Observer
    from demp.train.stopping import TrainingInterrupted

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "MonitorConfig",
    "Observer",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "TrainingInterrupted",
    "resume",
    "train",
]

_HOME = {
    **dict.fromkeys(("TrainResult", "resume", "train"), "loop"),
    "Observer": "observer",
    "TrainingDiverged": "losses",
    "TrainingInterrupted": "stopping",
}
"""Where names live; those that are not here, in config."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'demp.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"demp.train.{_HOME.get(name, 'config')}"), name)
    globals()[name] = value
    return value
