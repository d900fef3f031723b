"""The reference trainer: data, loop, checkpoints and run folders; a door to the core."""

from demp.train.config import (
    AugmentConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
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
