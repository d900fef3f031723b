"""CroPit-S: before training, the neurons that matter least for the flow of the gradient go (Rachwan et al. 2022).

With g the gradient of the weights, held constant, and c_j a gate on neuron j (``demp.importance.gates``):
    score="weight-flow"   |d/dc_j <g, dL/dW(c)>|   the original: what the gate changes in the flow through the weights
    score="gate-flow"     |(d2L/dc2 dL/dc)_j|      what the authors of DemP ran: the flow through the gates alone

The absolute value keeps the flow from changing either way. For the moment, the target and the ranking see
``demp.methods.scored``; the original gates before the norm (``gate="producer"``) and takes 5 batches.

**Residual networks whose branches start as zero** (last scale 0; see ``demp.methods.snap``): gate-flow is exactly 0
inside every branch, and all of it goes first, as in the DemP paper's rows for CroPit-S; so is weight-flow through the
weights of linear layers and convolutions. With ``as_published=False`` it counts all trainable parameters, the last
scales among them; these have a gradient, which the inner gates change. So branches keep scores, but hundreds of times
smaller than those of the stream, and still go almost first.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from demp.importance.gates import Scoring, ScoringKind
from demp.methods.base import MethodConfig
from demp.methods.scored import Scored, ScoredConfig


@dataclass(frozen=True, kw_only=True)
class CropItSConfig(ScoredConfig):
    """Scoring by gradient flow."""

    score: Literal["weight-flow", "gate-flow"] = "weight-flow"
    """``weight-flow`` (the original) or ``gate-flow`` (the DemP authors' variant, cheaper)."""
    as_published: bool = True
    """As the published codes sum the flow: through the weights of linear layers and convolutions; in ``gate-flow``
    through gates on the classifier's outputs, too. False: through all trainable parameters, biases and norms among
    them; through the gates of neurons alone."""


class CropItS(Scored):
    """Effect of a factor on each neuron on the gradient flow, before training."""

    name: ClassVar[str] = "cropit-s"
    summary: ClassVar[str] = "before training, the neurons that matter least for the gradient flow go"
    reference: ClassVar[str] = (
        "Winning the Lottery Ahead of Time: Efficient Early Network Pruning (Rachwan et al. 2022)"
    )
    Config: ClassVar[type[MethodConfig]] = CropItSConfig
    config: CropItSConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def kind(self) -> ScoringKind:
        """Return the kind of derivative that the config names."""
        return self.config.score

    def scoring(self) -> Scoring:
        """Return how neurons are scored, as the config says."""
        return replace(super().scoring(), as_published=self.config.as_published)
