"""How the answers of a method are to be carried out, and what it needs to give them."""

from dataclasses import dataclass
from typing import Literal

from demp.activity.detector import Collect
from demp.files.checks import check_choices
from demp.regularization.targets import LiveMask, TargetOrNothing


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """How a method's answers are to be carried out."""

    penalty_on: TargetOrNothing = "scales"
    penalty_in: Literal["gradient", "loss", "decoupled"] = "gradient"
    live_mask: LiveMask = "none"
    """Which entries get noise: ``none`` means all of them."""
    noise_weights_only: bool = False
    noise_others: bool = True
    collect: Collect = "auto"
    """As ``DemPConfig.collect``; ``batches``: a probe where there are batches, else nothing is looked at or watched."""
    window_steps: int | None = None
    constants: bool = False
    """Neurons that it selects leave with their means as constants, where that changes the outputs less."""
    max_drift: float | None = None
    """The most that one cut of saturated neurons may change the outputs: see ``ConstantRules``."""
    scores: bool = False
    """It scores on labelled batches: needs ``loss_fn`` and ``batches``."""
    zeros: bool = False
    """It looks at activations: needs ``batches``."""
    new_weights: bool = False
    """All weights are drawn anew after what it removed before training."""

    def __post_init__(self) -> None:
        check_choices(self, "requirement")
