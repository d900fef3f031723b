"""What one forward showed, before anything is concluded from it."""

from dataclasses import dataclass, field

from torch import Tensor

from demp.graph.elements import Axis, Elements
from demp.graph.parts import Norm


@dataclass(frozen=True)
class Site:
    """One activation: the module that ran, its kind, the elements on its neuron axis."""

    module: str
    kind: str
    ids: Tensor
    certain: bool = True
    """False: a step of what may be an activation; a layer only if a contraction reads it."""


@dataclass(frozen=True)
class ReadSeen:
    """One contraction that consumed neurons: see ``demp.graph.Read``."""

    weight: str
    use: int
    operand: int
    axis: int
    weight_axis: int
    neurons: Axis


@dataclass(frozen=True)
class ContractionSeen:
    """One contraction's arithmetic, and the axes that scale it."""

    module: str
    weight: str | None
    flops: int
    reads: Axis | None
    makes: Axis | None


@dataclass(frozen=True)
class JoinSeen:
    """A residual sum of an activation and a branch: see ``demp.graph.Join``."""

    module: str
    number: int
    operand: int
    axis: int
    stream: Axis
    branch: Axis
    source: Tensor
    target: Tensor
    planned: bool
    """Carried out as planned by an earlier cut."""


@dataclass
class Recording:
    """Everything a tracer saw."""

    elements: Elements
    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    reads: list[ReadSeen] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)
    contractions: list[ContractionSeen] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    attributes: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    joins: list[JoinSeen] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=dict)
    """Module -> sums of two tensors in its own code."""
