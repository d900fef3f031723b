"""How the answers of a method are to be carried out, and what it needs to give them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """How a method's answers are to be carried out."""

    penalty_on: str = "scales"
    penalty_in: str = "gradient"
    live_mask: str = "none"
    """Which entries get noise: ``none`` means all of them."""
    noise_weights_only: bool = False
    noise_others: bool = True
    collect: str = "auto"
    """As ``DemPConfig.collect``; ``batches``: a probe where there are batches, else nobody is judged or watched."""
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
