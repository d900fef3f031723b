"""What one forward showed, before anything is concluded from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from demp.graph.calls import CallPlan, CallSeat
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
    called: bool = False
    """Did the forward of a module with parts of its own call it as a function?"""

    @property
    def name(self) -> str:
        """The path of the activation module; of a function, its kind under the module that calls it."""
        return f"{self.module}.{self.kind}" if self.called and self.module else self.module or self.kind


@dataclass(frozen=True)
class ReadSeen:
    """One contraction that consumed neurons: see ``demp.graph.Read``."""

    weight: str
    use: int
    operand: int
    axis: int
    weight_axis: int
    neurons: Axis
    call: CallSeat | None = None


def marked(seen: ReadSeen, marks: Tensor) -> ReadSeen:
    """The same read, at which neurons that no activation has touched have these sets of sites."""
    bare = (seen.neurons.sites == 0) & (marks != 0)
    if not bool(bare.any()):
        return seen
    return replace(seen, neurons=replace(seen.neurons, sites=torch.where(bare, marks, seen.neurons.sites)))


@dataclass(frozen=True)
class CallSeen:
    """A call whose meaning depends on the number of neurons: see ``demp.graph.calls``."""

    seat: CallSeat
    axis: int
    ndim: int
    source: Axis
    """Along ``axis`` of the first argument."""
    parts: tuple[tuple[int, int], ...] = ()
    """Positions from and to of each part that is taken."""
    out: Axis | None = None
    """Of a view: the new axis; of heads: the channels that they are made of."""
    out_axis: int = 0
    inner: tuple[int, ...] = ()
    """Of a view that splits the source into the new axis and others behind it: the lengths of those."""
    needed: bool = True
    """False: as it is written the call follows a cut, if its numbers do."""
    binds: int = 0
    """Equal parts: if they turn out to be the same neurons in the same order, the call is not needed either."""
    otherwise: str = ""
    """Why the neurons stay where the call cannot be planned."""
    before: CallPlan | None = None
    """What an earlier cut has planned."""
    grid: tuple[int, ...] = ()
    """Of a channel shuffle by views: see ``demp.graph.parts.SizedCall``."""
    block: tuple[int, ...] = ()
    """Of a view: see ``demp.graph.calls.CallPlan``."""


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


@dataclass(frozen=True)
class StreamSeen:
    """A norm that reads channels which no activation has touched."""

    module: str
    channels: Axis


Outputs = Callable[[Any], Any] | Sequence[str] | None
"""A function of the model's output that returns tensors, names of modules, or None for the model's output itself."""


@dataclass(frozen=True)
class Offer:
    """What a trace offers beside neurons behind an activation, and whether sums may take two widths (`demp.trace`)."""

    joins: bool = True
    streams: bool = False
    linear: bool = False
    outputs: Callable[[Any], Any] | None = None
    """What counts of the model's output; None: all of it."""

    @property
    def bare(self) -> bool:
        """May channels go that no activation has touched?"""
        return self.streams or self.linear


USUAL = Offer()


@dataclass
class Recording:
    """Everything a trace saw."""

    elements: Elements
    offer: Offer = USUAL
    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    reads: list[ReadSeen] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)
    contractions: list[ContractionSeen] = field(default_factory=list)
    in_training: list[ContractionSeen] = field(default_factory=list)
    """Of weights that training forwards alone multiply with."""
    norms: list[Norm] = field(default_factory=list)
    attributes: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    heads: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)
    """Module path -> the heads of its attention (elements, one entry each), and the channels of one."""
    sharing: set[str] = field(default_factory=set)
    """Modules in whose attention all heads of the query share one key and value."""
    joins: list[JoinSeen] = field(default_factory=list)
    streams: list[StreamSeen] = field(default_factory=list)
    tables: dict[str, None] = field(default_factory=dict)
    """Parameters whose rows are looked up (embeddings), or that are added as they are."""
    normed: dict[str, None] = field(default_factory=dict)
    """Scales and shifts of layer norms over neurons that may go."""
    lifted: list[tuple[Tensor, str]] = field(default_factory=list)
    """Channels before any activation that may no longer be zero where they were, and why."""
    calls: list[CallSeen] = field(default_factory=list)
    places: dict[CallSeat, set[str]] = field(default_factory=dict)
    """Where calls stand: see `CallPlan`."""
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """(module, kind) -> calls of this kind inside the module."""
    repeated: set[str] = field(default_factory=set)
    """Modules that ran several times alike, of which ``calls`` and ``counts`` are those of one run."""
    sums: dict[str, int] = field(default_factory=dict)
    """Module -> sums of two tensors in its own code."""
    training_sums: dict[str, set[int]] = field(default_factory=dict)
    """The same of each training forward that was followed; training_counts: of calls, as ``counts``."""
    training_counts: dict[tuple[str, str], set[int]] = field(default_factory=dict)
