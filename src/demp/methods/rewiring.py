"""What sparse training from start to end shares: random masks at first; then drop by magnitude, grow by a score."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from demp.files.checks import check_portion
from demp.masking.distributions import kept
from demp.methods.base import MethodConfig, View
from demp.methods.sparse import MaskConfig, SparseMethod, dropped, grown, random_masks, thinned
from demp.regularization.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class RewiringConfig(MaskConfig):
    """Knobs of sparse training."""

    drop_fraction: float = 0.3
    """alpha: share of a tensor's weights that an update drops and grows elsewhere; its peak for ``cosine``."""
    drop_schedule: Literal["constant", "cosine"] = "constant"
    """``constant``, or ``cosine``: alpha / 2 (1 + cos(pi t / T_end)), zero at ``mask_until``."""
    regrow_dropped: bool = True
    """A weight that an update drops may be one of those that it grows, and then stays as it was, as published; False:
    what grows was masked before the update."""
    skip_updates: bool = False
    """The optimizer moves nothing on the steps on which masks change, as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_portion("drop_fraction", self.drop_fraction)


class Rewiring(SparseMethod):
    """Sparse from the first step; an update drops the smallest weights and grows as many where a score is highest.

    After a cut each tensor is brought back to its own density: an update drops and grows what that takes.
    """

    Config: ClassVar[type[MethodConfig]] = RewiringConfig
    config: RewiringConfig

    def skips_updates(self) -> bool:
        """Return whether the optimizer moves nothing while masks change, as the config says."""
        return self.config.skip_updates

    def growth(self, step: int, name: str, weight: Tensor, gradient: Tensor, view: View) -> Tensor:
        """Return a score per weight; those with the highest scores grow first."""
        raise NotImplementedError

    def drop_share(self, step: int) -> float:
        """The share of weights that an update drops."""
        if self.config.drop_schedule == "constant":
            return self.config.drop_fraction
        return cosine(self.config.drop_fraction, 0.0, min(step / max(self.window.last, 1), 1.0))

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        """Random ones; a tensor of density 1 gets none."""
        shares = self.densities(view)
        weights = {name: weight for name, weight in thinned(self.config, view).items() if shares[name] < 1}
        return random_masks(weights, shares, view.seed, self.config.weight_floor)

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        """Drop by |w|, grow by the score."""
        weights, gradients, shares = thinned(self.config, view), view.gradients(), self.densities(view)
        found = {}
        for name, weight in weights.items():
            if name in view.masks:
                growth = self.growth(step, name, weight, gradients[name], view)
                found[name] = self.rewired(view.masks[name], weight, growth, shares[name], self.drop_share(step))
        return found

    def rewired(self, mask: Tensor, weight: Tensor, growth: Tensor, density: float, fraction: float) -> Tensor:
        """The mask after an update: round(n * density) entries, whatever it had before."""
        target = kept(mask.numel(), density, self.config.weight_floor)
        closed = 0 if self.config.regrow_dropped else target + int(mask.sum()) - mask.numel()
        floor = max(self.config.weight_floor, closed)
        left = dropped(mask, weight.abs(), fraction, most=target, floor=floor)
        return grown(left, growth, target, barred=None if self.config.regrow_dropped else mask & ~left)
