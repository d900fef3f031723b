"""The words that a choice of the trainer may be, as types: editors complete them, checks and help read them off."""

from typing import Literal

OptimizerName = Literal["adam", "adamw", "sgdm", "sgdw"]
"""Of `demp.train.OptimizerConfig`."""
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
"""Of `demp.train.ScheduleConfig`."""
Crop = Literal["none", "pad", "resize-pad", "resized", "scales"]
"""How `demp.train.AugmentConfig` cuts images."""
PaddingMode = Literal["reflect", "zeros"]
"""What `demp.train.AugmentConfig` puts around images."""
Normalize = Literal["dataset", "image"]
"""By what `demp.train.DataConfig` has images normalised."""
Precision = Literal["fp32", "bf16", "fp16"]
"""In what `demp.train.TrainConfig` has a run compute."""
SinkName = Literal["tensorboard", "wandb", "trackio"]
"""Viewers of metrics."""
Activation = Literal["relu", "leaky_relu", "silu", "gelu"]
"""Of the models of the paper."""
Initial = Literal["fan-out", "fan-in", "haiku"]
"""How the weights of the convolutional models of the paper are drawn."""
NoiseKeeps = Literal["rate", "displacement"]
"""What the noise of a shorter run has in common with the paper's."""
