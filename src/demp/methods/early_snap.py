"""EarlySNAP: SNAP's score at EarlyCroP's moment, a hybrid of the DemP paper (Sec. 4.2).

By the time the trigger fires, the last scales of residual branches have left their initial zero, so that nothing
collapses as it does before training (see ``demp.methods.snap``).
"""

from typing import ClassVar

from demp.methods.base import MethodConfig
from demp.methods.early import Early, EarlyConfig
from demp.methods.snap import Snap


class EarlySnap(Early, Snap):
    """Sensitivity of the loss to a factor on each neuron, once the weights move little."""

    name: ClassVar[str] = "early-snap"
    summary: ClassVar[str] = "SNAP early in training, once the weights move little in an epoch"
    reference: ClassVar[str] = "Maxwell's Demon at Work, Sec. 4.2, of SNAP (2020) and EarlyCroP (2022)"
    Config: ClassVar[type[MethodConfig]] = EarlyConfig
    config: EarlyConfig  # pyright: ignore[reportIncompatibleVariableOverride]
