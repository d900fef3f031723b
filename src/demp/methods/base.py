"""The contract of a method: one file, a config, and up to four answers. Every default does nothing."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from demp.activity import Criterion, Verdict
from demp.graph import NeuronGraph
from demp.noise import Noise
from demp.penalties import Penalty
from demp.surgery import Limits


class View(Protocol):
    """What a method may look at, read-only."""

    @property
    def graph(self) -> NeuronGraph:
        """The neurons of the dense model."""
        ...

    @property
    def gone(self) -> Tensor:
        """Per class: removed already."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    def verdict(self) -> Verdict:
        """Who is dead now (runs the probe, or reads the window)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Wants:
    """How a method's answers are to be carried out."""

    penalty_on: str = "scales"
    penalty_in: str = "gradient"
    live_mask: str = "none"
    """Which entries get noise: ``none`` means all of them."""
    noise_weights_only: bool = False
    noise_others: bool = True
    collect: str = "auto"
    window_steps: int | None = None
    fold: bool = False


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Knobs that every method has."""

    floor: int = 1
    """Neurons that stay in every layer, even if all are dead (gap 41)."""
    multiple: int = 1
    """Widths stay multiples of this; 8 is good advice on CUDA."""
    include: tuple[str, ...] = ("*",)
    """Globs of layers that may be cut."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that may not be cut."""
    joins: bool = True
    """Each block output of a residual stream may lose its own neurons, and the sum becomes a join of two widths; False:
    a channel goes when it is dead at every read of the stream."""

    def __post_init__(self) -> None:
        self.limits()

    def limits(self) -> Limits:
        """The limits of every cut; validates the knobs."""
        return Limits(floor=self.floor, multiple=self.multiple, include=self.include, exclude=self.exclude)


class Method:
    """A pruning method. It never touches modules, optimizers or files; it returns what should happen."""

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps

    def criterion(self) -> Criterion:
        """How death is judged."""
        return Criterion()

    def wants(self) -> Wants:
        """How penalty, noise and checks are to be carried out."""
        return Wants()

    def penalty(self, step: int) -> Penalty | None:
        """What is added to the loss at this step?"""
        return None

    def after_step(self, step: int) -> Noise | None:
        """What happens to the weights after the optimizer moved them?"""
        return None

    def is_due(self, step: int) -> bool:
        """Is it time to select, with ``step`` steps done?"""
        return False

    def select(self, step: int, view: View) -> dict[str, Tensor]:
        """Which neurons go now? Layer name -> boolean per neuron, dense numbering."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state back."""
