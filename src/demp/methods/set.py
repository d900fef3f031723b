"""Sparse Evolutionary Training (SET): drop the smallest weights, grow as many at random (Mocanu et al. 2018).

From the first step each tensor has a random mask. Every f steps of the window: a share of its weights, the smallest
|w|, is dropped, and as many grow anywhere else, from zero. The authors of DemP use a window of 30 % to 80 % of the run,
so that the random masks stand for the first 30 %; the publication rewires from the start (``mask_from=0``).
"""

from typing import ClassVar

from torch import Tensor

from demp.methods.base import View
from demp.methods.rewiring import Rewiring
from demp.methods.sparse import uniform_scores


class SparseEvolutionaryTraining(Rewiring):
    """Sparse training that grows weights at random places."""

    name: ClassVar[str] = "set"
    summary: ClassVar[str] = "sparse from the start; drop the smallest weights, grow as many at random"
    reference: ClassVar[str] = (
        "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network science"
    )

    def growth(self, step: int, name: str, weight: Tensor, gradient: Tensor, view: View) -> Tensor:
        """Return uniform random numbers as the growth scores of weights."""
        return uniform_scores(weight, view.seed, step, name)
