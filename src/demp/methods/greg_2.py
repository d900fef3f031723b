"""GReg-2, Wang et al. 2021: a uniformly growing L2 penalty separates weights, and the smallest are pushed to zero.

``start_at``:    every neuron has a factor lambda_c = 0
``pick``:        every K_u steps all factors grow by ``pick_delta``, until they are ``pick_ceiling``
then:            the filters with the smallest L1 norm are picked; only their factors grow on, by ``delta``, until tau
every step:      gradient of the loss + lambda_c * w on the weights that make neuron c
``stabilise``:   the factors stay at tau, then the picked neurons go and the rest of the run fine-tunes

Under the same penalty a weight on which the loss depends strongly shrinks less, so that magnitude tells more after the
picking phase than before it. Factors of neurons that were not picked become ``kept_factor``. For budget, phases and
residual streams see ``greg_1``: all of it holds here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from demp.errors import UsageError
from demp.files.checks import check_above, check_portion
from demp.methods.base import MethodConfig
from demp.methods.growing import GrowingConfig, GrowingRegularisation, Ramp


@dataclass(frozen=True, kw_only=True)
class GReg2Config(GrowingConfig):
    """Knobs of GReg-2: those of GReg-1, and of the phase in which all neurons are pushed to see which are weak."""

    grow: float = 0.3
    """Share of the run in which the factors of the picked neurons grow up to ``ceiling``."""
    pick: float = 0.1
    """Share of the run in which all factors grow, before the pick."""
    pick_delta: float = 1e-5
    """Growth of all factors per update in the picking phase (the authors' code)."""
    pick_ceiling: float = 0.01
    """Where the picking phase ends."""
    kept_factor: float = -1e-4
    """Factor of neurons that were not picked, while the others grow: slightly negative, so that they recover, in the
    authors' code; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_portion("pick", self.pick, "a share of the run")
        for name in ("pick_delta", "pick_ceiling"):
            check_above(name, getattr(self, name))
        if self.pick_ceiling >= self.ceiling:
            raise UsageError(f"pick_ceiling is {self.pick_ceiling}; give a factor below ceiling, {self.ceiling}")
        if not math.isfinite(self.kept_factor):
            raise UsageError(f"kept_factor is {self.kept_factor}; give a finite number")


class GReg2(GrowingRegularisation):
    """Growing L2 on all neurons, then on those with the smallest weights."""

    name: ClassVar[str] = "greg-2"
    summary: ClassVar[str] = "a growing L2 penalty on all neurons shows the weak ones, which are pushed on and go"
    reference: ClassVar[str] = "Neural Pruning via Growing Regularization"
    Config: ClassVar[type[MethodConfig]] = GReg2Config
    config: GReg2Config

    def __init__(self, config: GReg2Config, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.kept_factor = config.kept_factor

    @property
    def shares(self) -> tuple[float, ...]:
        """The picking phase, and the growth."""
        return (self.config.pick, self.config.grow)

    def phases(self) -> tuple[Ramp, ...]:
        """The picking phase, and the growth."""
        c = self.config
        pick = self.ramp(self._steps(c.start_at), c.start_at, c.pick, 0.0, c.pick_delta, c.pick_ceiling)
        return pick, self.ramp(pick.end, c.start_at + c.pick, c.grow, c.pick_ceiling, c.delta, c.ceiling)
