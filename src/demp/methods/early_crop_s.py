"""EarlyCroP-S: train dense, and once the weights move little in an epoch, prune as CroPit-S does (Rachwan et al. 2022).

The published code prunes in a single round (``rounds=0``); the authors of DemP in seven (the default). By the time the
trigger fires, the last scales of residual branches have left their initial zero (see ``demp.methods.snap``).
"""

from dataclasses import dataclass
from typing import ClassVar

from demp.methods.base import MethodConfig
from demp.methods.cropit_s import CropItS, CropItSConfig
from demp.methods.early import Early, EarlyConfig


@dataclass(frozen=True, kw_only=True)
class EarlyCropSConfig(EarlyConfig, CropItSConfig):
    """Which flow of the gradient scores a neuron, and when the training has settled enough to prune by it."""


class EarlyCropS(Early, CropItS):
    """Effect of a factor on each neuron on the gradient flow, once the weights move little."""

    name: ClassVar[str] = "early-crop-s"
    summary: ClassVar[str] = "CroPit-S early in training, once the weights move little in an epoch"
    reference: ClassVar[str] = (
        "Winning the Lottery Ahead of Time: Efficient Early Network Pruning (Rachwan et al. 2022)"
    )
    Config: ClassVar[type[MethodConfig]] = EarlyCropSConfig
    config: EarlyCropSConfig  # pyright: ignore[reportIncompatibleVariableOverride]
