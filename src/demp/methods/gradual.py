"""Gradual masking: from dense to sparse by a score per weight, along a cubic schedule (Zhu & Gupta 2017)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from demp.errors import UsageError
from demp.masking.distributions import kept, top, top_of_all
from demp.methods.base import MethodConfig, View
from demp.methods.sparse import MaskConfig, SparseMethod, UpdateSteps, thinned

TINY_NORM = 1e-8
"""Added to the norm of a tensor's scores, as in jaxpruner."""


@dataclass(frozen=True, kw_only=True)
class GradualConfig(MaskConfig):
    """Where the final sparsity lies in the network, and along which cubic curve masks come to it."""

    distribution: Literal["uniform", "erk", "global", "global-normalised"] = "uniform"  # pyright: ignore[reportIncompatibleVariableOverride]
    """``uniform``: S in every tensor; ``erk``: Erdos-Renyi-Kernel; ``global``: one ranking of all tensors;
    ``global-normalised``: the same with each tensor's scores divided by their norm (jaxpruner's global form)."""
    cubic: Literal["exact", "plus-one"] = "exact"
    """``exact``: the first update of the window masks nothing and the last one reaches S; ``plus-one``: jaxpruner's
    form, which is one step ahead and reaches S only if an update falls on t1 or on the step before."""


def cubic(progress: float) -> float:
    """1 - (1 - p)^3, with p kept in [0, 1]: the share of the final sparsity that is due."""
    return 1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3


def progress(step: int, window: UpdateSteps, total_steps: int, form: str) -> float:
    """How far the schedule has come at an update.

    ``exact``: (t - first update) / (last update - first update). ``plus-one``: (t + 1 - t0) / (t1 - t0).
    """
    if form == "plus-one":
        length = window.last - window.first
        return (step + 1 - window.first) / length if length else 1.0
    updates = window.steps(total_steps)
    length = updates[-1] - updates[0]
    return (step - updates[0]) / length if length else 1.0


class Gradual(SparseMethod):
    """Masks grow in the window; a weight's score decides, and what is masked scores zero.

    Raises:
        UsageError: no update of the masks falls into the window.
    """

    Config: ClassVar[type[MethodConfig]] = GradualConfig
    config: GradualConfig

    def __init__(self, config: GradualConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        if not self.window.steps(total_steps):
            raise UsageError(
                f"no update of the masks falls into steps {self.window.first} to {self.window.last} of {total_steps}; "
                f"lower mask_every (now {self.window.every}) or widen mask_from and mask_until"
            )

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return a score per weight; those with the highest scores are kept."""
        raise NotImplementedError

    def due_share(self, step: int) -> float:
        """The share of S that is due at an update."""
        return cubic(progress(step, self.window, self.total_steps, self.config.cubic))

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        """The top scores of each tensor, or of all; a tensor that is dense and stays dense gets no mask."""
        weights, gradients, share = thinned(self.config, view), view.gradients(), self.due_share(step)
        scores = {name: self.score(weight, gradients[name]) for name, weight in weights.items()}
        floor = self.config.weight_floor
        if self.config.distribution.startswith("global"):
            if self.config.distribution == "global-normalised":
                scores = {name: score / (score.norm() + TINY_NORM) for name, score in scores.items()}
            found = top_of_all(scores, 1.0 - self.config.weight_sparsity * share, floor)
        else:
            shares = {name: 1.0 - (1.0 - density) * share for name, density in self.densities(view).items()}
            found = {name: top(score, kept(score.numel(), shares[name], floor)) for name, score in scores.items()}
        return {name: mask for name, mask in found.items() if name in view.masks or not bool(mask.all())}

    def withheld(self, view: View) -> int:
        """Of one ranking: as far as the floors of all tensors exceed what may stay."""
        if not self.config.distribution.startswith("global"):
            return super().withheld(view)
        sizes = [weight.numel() for weight in thinned(self.config, view).values()]
        floors = sum(min(self.config.weight_floor, size) for size in sizes)
        return max(0, floors - round(sum(sizes) * (1.0 - self.config.weight_sparsity)))
