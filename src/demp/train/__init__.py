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
from demp.train.loop import Observer, TrainingInterrupted, TrainResult, resume, train
from demp.train.run import TrainingDiverged

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
