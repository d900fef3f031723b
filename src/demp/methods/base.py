"""The contract of a method: one file, a config, and a few answers. Every default does nothing.

What is here concerns training and neurons; a method that also masks single weights is a `demp.methods.MaskMethod`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from demp.activity import Criterion, Detection
from demp.activity.covariances import Covariance
from demp.activity.tally import Key
from demp.budgets import Budget, Meter, as_budget
from demp.files.checks import check_choices
from demp.graph import GraphState, NeuronGraph
from demp.importance.gates import Scoring
from demp.methods.earlier import EarlierMethod, moved_name
from demp.methods.requirements import Requirements
from demp.regularization import Shrink
from demp.regularization.handover import Taker
from demp.regularization.noise import Noise
from demp.regularization.penalties import Penalty
from demp.surgery import Limits


class View(Protocol):
    """What a method may look at, read-only."""

    @property
    def graph(self) -> NeuronGraph:
        """The neurons of the dense model."""
        ...

    @property
    def state(self) -> GraphState:
        """The network as it is now; ``state.removed`` says per class whether it is removed already."""
        ...

    @property
    def meter(self) -> Meter:
        """What the network spends, for any set of removed neurons."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    @property
    def seed(self) -> int:
        """Of the run: what a method draws at random is a function of it and of the step."""
        ...

    @property
    def final(self) -> bool:
        """Is this the last check of the run?"""
        ...

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> which entries are there, at present widths."""
        ...

    @property
    def can_detect(self) -> bool:
        """Are there examples to look for dead neurons on?"""
        ...

    def detect(self) -> Detection:
        """Find out which neurons are dead now (runs the probe, or reads the window)."""
        ...

    def scores(self, scoring: Scoring) -> Tensor:
        """One derivative per class, signed, on labelled training batches: see ``demp.importance.gates``."""
        ...

    def loss(self, batches: int) -> float:
        """Mean loss on this many labelled training batches, batch norms as in training, dropout off."""
        ...

    def zeros(self, batches: int) -> Tensor:
        """Per class: share of zeros among the outputs that its readers see, on this many training batches."""
        ...

    def scales(self) -> Tensor:
        """Per class: the size of what scales the neuron's output; 0 where nothing does. See ``OutputScales.sizes``."""
        ...

    def covariances(self) -> Mapping[Key, Covariance]:
        """Consumer -> covariance of what it read in the training forwards of this step, equal on all ranks.

        Present widths. Empty in steps that ``Method.looks`` did not ask for, and when asked
        again.
        """
        ...

    def takers(self) -> Sequence[Taker]:
        """The weights that fading neurons can hand over to: see ``demp.regularization.handover``."""
        ...

    def frozen(self) -> Tensor:
        """Per class: does something frozen scale the neuron's output? See ``OutputScales.frozen``."""
        ...

    def parameters(self) -> Mapping[str, Tensor]:
        """Trainable parameters by first name, whole, at present widths."""
        ...

    def maskable(self) -> Mapping[str, Tensor]:
        """Those that a mask may thin out: weights of convolutions and matrix products, in forward order."""
        ...

    def gradients(self) -> Mapping[str, Tensor]:
        """Gradients of the loss in this step for what is maskable, also where a mask holds the weight."""
        ...


@dataclass(frozen=True)
class Selection:
    """Which neurons a method wants removed now, and how their cut is to be proven and reported."""

    neurons: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> boolean per neuron, dense numbering."""
    exact: bool | None = None
    """Do the outputs stay as they are? Then the cut must prove it. None: as the method's criterion of death says."""
    notes: tuple[str, ...] = ()
    """What the report should say."""
    advice: str = ""
    """What the user should change; logged as a warning, and in the report."""


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
    """Each block output of a residual stream may lose its own neurons, and the sum then adds two widths; False:
    a channel goes when it is dead at every read of the stream."""
    budget: Budget | None = None
    """What the network that comes out may cost, for example ``demp.Budget(flops=0.4)``; also a table or a text such as
    "flops=0.4". It takes the place of a method's own target."""

    def __post_init__(self) -> None:
        check_choices(self)
        self.limits()
        object.__setattr__(self, "budget", as_budget(self.budget))

    def reading(self) -> dict[str, bool]:
        """How the model is to be read: options of `demp.trace`."""
        return {"joins": self.joins}

    def limits(self) -> Limits:
        """The limits of every cut; validates the knobs."""
        return Limits(floor=self.floor, multiple=self.multiple, include=self.include, exclude=self.exclude)


class Method(EarlierMethod):
    """A pruning method. It never touches modules, optimizers or files; it returns what should happen."""

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    takes_budget: ClassVar[bool] = False
    """Does it know how to land on a budget?"""

    def __init__(self, config: Any, total_steps: int) -> None:
        self.config = config
        self.total_steps = total_steps

    def raise_if_unfit(self, graph: NeuronGraph) -> None:
        """Raise UsageError, with a remedy, if this method has nothing to work on in such a network."""

    def criterion(self) -> Criterion:
        """Return the criterion by which neurons count as dead."""
        return Criterion()

    def requirements(self) -> Requirements:
        """How penalty, noise and checks are to be carried out."""
        return Requirements()

    def penalty(self, step: int) -> Penalty | None:
        """What is added to the loss at this step?"""
        return None

    def after_step(self, step: int) -> Noise | None:
        """What happens to the weights after the optimizer moved them?"""
        return None

    def watches(self, step: int) -> bool:
        """Is the sensitivity of this step wanted, between its gradients and the optimizer?"""
        return False

    def watch(self, sensitivity: Tensor) -> None:
        """Take one step's derivatives of the loss by a factor on every neuron: one number per class."""

    def looks(self, step: int) -> bool:
        """Are the covariances wanted of the forwards that lead to ``step`` steps done?"""
        return False

    def shrink(self, step: int) -> Shrink | None:
        """How do the scales of neurons shrink, after the optimizer moved them?"""
        return None

    def is_due(self, step: int) -> bool:
        """Is it time to select, with ``step`` steps done? 0 is before training. At the end of the run it always is."""
        return False

    def ready(self, step: int, view: View) -> bool:
        """At a due step: does it really select? A method that waits for a moment looks for it here, at no other cost.

        Not asked at the end of the run, nor for a cut that was put off. In a combination ``select`` may still be called
        after a no, because the other method was ready.
        """
        return True

    def select(self, step: int, view: View) -> Selection:
        """Return the neurons to remove now; by default none."""
        return Selection()

    def again(self, step: int) -> bool:
        """After a cut: is the next one due at once, on the network as it is now? Equal on all ranks."""
        return False

    def unfinished(self, step: int) -> str:
        """What of the method's plan was still to come when the run ended after ``step`` steps; empty if nothing."""
        return ""

    def nothing_removed(self) -> str:
        """What to change where a whole run removed no neuron; empty if the method has a note on it, or removes none."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return what the method must know after a restart, ready for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


def __getattr__(name: str) -> Any:
    """Return what version 0.1 called ``Wants``, with a DeprecationWarning."""
    return moved_name(__name__, name)
