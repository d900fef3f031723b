"""Gradual magnitude pruning: mask the smallest weights, a little more at each update (Zhu & Gupta 2017).

Every f steps of the window: s_t = S (1 - (1 - p)^3), and each tensor keeps its round(n (1 - s_t)) largest |w|. A masked
weight is zero, so that it returns only where ties let it.
"""

from typing import ClassVar

from torch import Tensor

from demp.methods.gradual import Gradual


class Magnitude(Gradual):
    """Masks the weights that are smallest by size, a few more at each update."""

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "mask the smallest weights along a cubic schedule"
    reference: ClassVar[str] = "To prune, or not to prune: exploring the efficacy of pruning for model compression"

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |w| as the score of each weight."""
        return weight.abs()
