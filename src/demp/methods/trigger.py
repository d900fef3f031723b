"""When EarlyCroP prunes: the training has left its first, chaotic phase once the weights move little in an epoch.

Both rules look at all trainable parameters as one vector w at epoch ends. With rho the target:

    paper       d_t = |w_t - w_0|; fires when 0 < |d_t - d_(t-1)| / |w_0| < 1 - rho. With rho <= 0.5 the bound is so
                loose that it fires almost at once, after the first epoch at the earliest.
    repository  r_t = |w_1 - w_t| / |w_1|, w_1 the weights after the first epoch; the bound is r_2 times
                min(1 - rho - 0.1, 0.99), fixed then; fires when |r_t - r_(t-1)| is below it, after the third epoch at
                the earliest. With rho >= 0.9 the bound is not positive and it never fires.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["paper", "repository"]
"""Which of the two formulas above decides."""
MARGIN, MOST = 0.1, 0.99
"""The repository's factor for neurons: min(1 - rho - MARGIN, MOST)."""


class Trigger:
    """One rule over the epochs of one run. It keeps a copy of the weights of its first look."""

    def __init__(self, rule: Rule, target: float) -> None:
        self.rule, self.target = rule, target
        self.reference: dict[str, Tensor] | None = None
        self.previous: float | None = None
        self.bound: float | None = 1 - target if rule == "paper" else None
        self.moved: float | None = None
        """What was compared with the bound at the last look."""

    def look(self, weights: Mapping[str, Tensor]) -> bool:
        """Take the weights at a moment, the first of which is the reference; is it time?

        For ``paper`` the first moment is before training, for ``repository`` the end of the first epoch.
        """
        if self.reference is None:
            self.reference = {name: weight.detach().clone() for name, weight in weights.items()}
            self.previous = 0.0 if self.rule == "paper" else None
            return False
        now = distance(weights, self.reference) / norm(self.reference)
        before, self.previous = self.previous, now
        if before is None:
            self.bound = now * min(1 - self.target - MARGIN, MOST)
            return False
        assert self.bound is not None
        self.moved = abs(now - before)
        return self.moved < self.bound and (self.rule == "repository" or self.moved > 0)

    def forget(self) -> None:
        """The moment has come: no copy is needed any more."""
        self.reference = None

    def state_dict(self) -> dict[str, Any]:
        """Return the reference weights, the last distances and the bound."""
        return {
            "reference": self.reference,
            "previous": self.previous,
            "bound": self.bound,
            "moved": self.moved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the reference weights and distances from a saved state."""
        reference = state["reference"]
        self.reference = None if reference is None else dict(reference)
        self.previous, self.bound, self.moved = state["previous"], state["bound"], state["moved"]


def norm(weights: Mapping[str, Tensor]) -> float:
    """Euclidean norm of all tensors as one vector, in double precision."""
    squares = [weight.double().square().sum().cpu() for weight in weights.values()]
    return float(torch.stack(squares).sum().sqrt())


def distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Norm of the difference, one tensor at a time."""
    squares = [
        (weight.double() - others[name].to(weight.device, torch.float64)).square().sum().cpu()
        for name, weight in weights.items()
    ]
    return float(torch.stack(squares).sum().sqrt())
