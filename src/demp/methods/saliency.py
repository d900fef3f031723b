"""Gradual saliency pruning: mask the weights whose removal changes the loss least, to first order.

Every f steps of the window: s_t = S (1 - (1 - p)^3), and each tensor keeps its round(n (1 - s_t)) largest |w dL/dw|,
with the gradient of that step alone (all its accumulated micro-batches). One batch is a noisy liveness: a weight that
happens to have a small gradient there is masked for good.
"""

from typing import ClassVar

from torch import Tensor

from demp.methods.gradual import Gradual


class Saliency(Gradual):
    """Masks the weights whose size times gradient is smallest, a few more at each update."""

    name: ClassVar[str] = "saliency"
    summary: ClassVar[str] = "mask the weights of the smallest |weight x gradient| along a cubic schedule"
    reference: ClassVar[str] = "Importance Estimation for Neural Network Pruning; as in jaxpruner"

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |w dL/dw| as the score of each weight."""
        return (weight * gradient).abs()
