"""Random neurons: what every score has to beat.

Removed at once down to the target, before training or at a share of the run. Which ones is a function of the run's seed
and the step.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from demp.errors import UsageError
from demp.importance.ranking import RankingName
from demp.methods.base import Method, MethodConfig, Selection, View
from demp.methods.reaching import TargetConfig, reach
from demp.regularization.noise import SEED_STRIDE


@dataclass(frozen=True, kw_only=True)
class RandomConfig(TargetConfig):
    """How many neurons go, when, and whether they are drawn from the whole network or in each layer."""

    prune_at: float = 0.0
    """Share of the run after which they go; 0: before training."""
    ranking: RankingName = "global"
    """``global``: drawn from the whole network, as the scored methods rank; ``layer``: the same share of each layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prune_at < 1:
            raise UsageError(f"prune_at is {self.prune_at}; give a share of the run in [0, 1)")


class RandomNeurons(Method):
    """Neurons drawn at random go at once."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random neurons go, before training or at a share of the run"
    reference: ClassVar[str] = "the control of every comparison"
    Config: ClassVar[type[MethodConfig]] = RandomConfig
    takes_budget: ClassVar[bool] = True
    config: RandomConfig

    def __init__(self, config: RandomConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self._done = False

    def is_due(self, step: int) -> bool:
        """Return whether this is the one step of the pruning."""
        return step == round(self.config.prune_at * self.total_steps)

    def select(self, step: int, view: View) -> Selection:
        """Those with the lowest of random numbers."""
        if self._done:
            return Selection()
        self._done = True
        generator = torch.Generator().manual_seed((view.seed * SEED_STRIDE + step) % (1 << 63))
        numbers = torch.rand(view.graph.classes, generator=generator, dtype=torch.float64, device="cpu")
        neurons, notes = reach(view, self.config, numbers, ranking=self.config.ranking)
        return Selection(neurons, exact=False, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the neurons have been removed already."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a saved state whether the neurons have been removed."""
        self._done = bool(state["done"])
