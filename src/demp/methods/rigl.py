"""RigL: drop the smallest weights, grow as many where the loss is steepest (Evci et al. 2020).

From the first step each tensor has a random mask. Every Delta T steps until T_end: the share alpha / 2 (1 + cos(pi t /
T_end)) of its weights, the smallest |w|, is dropped, and as many grow where |dL/dw| is highest, from zero; the gradient
is that of the step, dense, with all its accumulated micro-batches. The authors of DemP use a window of 30 % to 80 % of
the run; the publication rewires from the start to 75 % (``mask_from=0, mask_until=0.75``), with its first layer dense
in the uniform setting (``dense_first``).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from demp.methods.base import MethodConfig, View
from demp.methods.rewiring import Rewiring, RewiringConfig


@dataclass(frozen=True, kw_only=True)
class RigLConfig(RewiringConfig):
    """Knobs of RigL."""

    distribution: Literal["uniform", "erk"] = "erk"
    """``erk``: Erdos-Renyi-Kernel, density by sum over product of the axes; ``uniform``: S in every tensor."""
    drop_schedule: Literal["constant", "cosine"] = "cosine"
    """``cosine``: alpha / 2 (1 + cos(pi t / T_end)), zero at ``mask_until``; or ``constant``."""


class RigL(Rewiring):
    """Grow by gradient."""

    name: ClassVar[str] = "rigl"
    summary: ClassVar[str] = "sparse from the start; drop the smallest weights, grow as many by gradient"
    reference: ClassVar[str] = "Rigging the Lottery: Making All Tickets Winners"
    Config: ClassVar[type[MethodConfig]] = RigLConfig

    def growth(self, step: int, name: str, weight: Tensor, gradient: Tensor, view: View) -> Tensor:
        """Return |dL/dw| as the growth score of each weight."""
        return gradient.abs()
