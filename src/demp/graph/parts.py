"""What a neuron graph is made of: plain frozen data, no reference to the model."""

from dataclasses import dataclass

from torch import Tensor

from demp.graph.calls import CallPlan, CallSeat


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer. ``classes[i]`` is the class that owns index ``i``."""

    tensor: str
    axis: int
    classes: Tensor


@dataclass(frozen=True)
class Read:
    """What consumes neurons: use number ``use`` of parameter ``weight`` in one forward, or a residual sum.

    ``operand`` is the position of the activation among the ATen arguments, ``axis`` its neuron axis; ``weight_axis`` is
    the axis of the weight that meets it. ``classes`` has one entry per position.
    """

    weight: str
    use: int
    operand: int
    axis: int
    weight_axis: int
    classes: Tensor
    layers: dict[int, Tensor]
    """Layer index -> positions of the axis that carry neurons of this layer."""
    seat: tuple[str, int] | None = None
    """Of a residual sum, which reads the neurons of its stream: its module and number (see ``Join``)."""
    call: CallSeat | None = None
    """Of a sum over neurons, a mean or the like, which no weight takes part in: which call of the user's code it is."""
    places: tuple[str, ...] = ()
    """Where that sum or call stands: see `JoinPlan`."""


@dataclass(frozen=True)
class Join:
    """A residual sum whose two sides may keep different channels.

    It is sum number ``number`` in one call of ``module``; operand ``operand`` is the stream, an activation that is zero
    where its neuron is dead. Channel ``source[i]`` of the stream is added to channel ``target[i]`` of the branch.
    """

    module: str
    number: int
    operand: int
    axis: int
    stream: Tensor
    """Class of each channel of the stream."""
    branch: Tensor
    """Class of each channel of the branch, which are those of the sum."""
    source: Tensor
    target: Tensor
    sums: int = 0
    """Sums in one call of ``module``."""
    training: tuple[int, ...] = ()
    """The same of calls in training mode, of which each may run other parts; empty: training was not seen."""
    places: tuple[str, ...] = ()
    """See `JoinPlan`."""


@dataclass(frozen=True)
class Stream:
    """A residual stream whose channels may be reordered."""

    table: Tensor
    """Class of each channel (row) at each block output that the stream passes (column); -1 where it has none."""
    sums: tuple[tuple[int, int], ...]
    """Columns of the two sides of each join."""


@dataclass(frozen=True)
class Norm:
    """A batch norm: its parameters, the weight that feeds it, and the classes along its axis."""

    scale: str | None
    shift: str | None
    producer: str | None


@dataclass(frozen=True)
class Contraction:
    """The arithmetic of one convolution or matrix product: FLOPs at dense widths, and what they scale with."""

    module: str
    weight: str | None
    """The parameter; None for a product of two activations."""
    flops: int
    inputs: Tensor | None
    outputs: Tensor | None
    axis: int | None = None
    """Axis of the weight along which its outputs lie; None where it is used in parts."""


HEADS = "attention"
"""Kind of a layer whose neurons are heads of attention."""

STREAM = "stream"
"""Kind of a layer whose neurons are the channels of a stream that norms read: a transformer's embedding width."""

LINEAR = "linear"
"""Kind of a layer whose neurons are read as a weight, or the norm behind it, makes them: no activation touches them."""


@dataclass(frozen=True)
class Layer:
    """One activation site, the heads of one attention, the channels of one stream, or what one weight makes."""

    name: str
    activation: str
    classes: Tensor
    """Class of each neuron, dense order."""
    removable: Tensor
    """Per neuron: may it go at all?"""
    producers: tuple[tuple[str, int], ...]
    reads: tuple[tuple[str, int], ...]
    coupled: tuple[str, ...]
    """Other layers that share neurons with this one (a residual stream, a gate)."""

    @property
    def width(self) -> int:
        """The number of neurons in the dense model."""
        return len(self.classes)


@dataclass(frozen=True)
class Refusal:
    """Neurons that demp will not remove, and why."""

    name: str
    reason: str
    neurons: int


@dataclass(frozen=True)
class SizedCall:
    """A call of the user's code that a cut has to carry out: see `CallPlan`."""

    seat: CallSeat
    axis: int
    ndim: int
    source: Tensor
    """Class of each position along ``axis`` of the first argument."""
    parts: tuple[tuple[int, int], ...]
    out: Tensor | None
    """Of a view: class of each position of the new axis."""
    out_axis: int
    inner: tuple[int, ...]
    """Of a view that splits the source: the lengths of the axes behind the new one, which may not change."""
    needed: bool
    """False: as it is written the call follows a cut."""
    calls: int
    """Calls of this kind inside the module."""
    before: CallPlan | None
    grid: tuple[int, ...] = ()
    """See `CallPlan`; the first view has no ``out``, the last one's ``source`` are the classes that it makes."""
    training: tuple[int, ...] = ()
    """As ``calls``, in training mode: see `Join`."""
    block: tuple[int, ...] = ()
    places: tuple[str, ...] = ()
    """See `CallPlan`."""
