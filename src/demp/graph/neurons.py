"""The neuron graph: plain frozen data, no reference to the model.

A *class* is the set of all tensor slices that must go together; classes are numbered once, on the dense model, and
keep their number for the whole run. A neuron of a layer is one class. What was removed so far is a boolean vector over
classes, called ``gone`` everywhere; the indices that stay in any axis follow from it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.graph.calls import Seat, SizedCall


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
    call: Seat | None = None
    """Of a sum over neurons, a mean or the like, which no weight takes part in: which call of the user's code it is."""


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


@dataclass(frozen=True)
class Layer:
    """One activation site."""

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
        """Neurons in the dense model."""
        return len(self.classes)


@dataclass(frozen=True)
class Refusal:
    """Neurons that demp will not remove, and why."""

    name: str
    reason: str
    neurons: int


@dataclass(frozen=True)
class NeuronGraph:
    """Everything known about the neurons of one model."""

    layers: tuple[Layer, ...]
    refused: tuple[Refusal, ...]
    slots: tuple[Slot, ...]
    reads: tuple[Read, ...]
    norms: tuple[Norm, ...]
    joins: tuple[Join, ...]
    streams: tuple[Stream, ...]
    contractions: tuple[Contraction, ...]
    shapes: dict[str, tuple[int, ...]]
    """Dense shape of every parameter and buffer, by its first name."""
    aliases: dict[str, str]
    """Other names of a tied tensor -> its first name."""
    attributes: dict[tuple[str, str], Tensor]
    """(module path, attribute that its forward reads) -> class of each thing that the attribute counts: the groups of a
    convolution whose groups go one by one (depthwise, mostly)."""
    classes: int
    vehicle: str
    """How the model was read: ``meta`` (no arithmetic) or ``eager``."""
    index: dict[str, Layer] = field(repr=False)
    calls: tuple[SizedCall, ...] = ()
    notes: tuple[str, ...] = ()
    """Residual sums whose two sides share their neurons because training has other sums than evaluation."""

    def layer(self, name: str) -> Layer:
        """The layer called ``name``. Raises UsageError with the names there are."""
        if name not in self.index:
            import difflib

            near = difflib.get_close_matches(name, self.index, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"no layer called {name!r} in the graph{hint}")
        return self.index[name]

    def nothing_gone(self) -> Tensor:
        """The ``gone`` vector of the dense model."""
        return torch.zeros(self.classes, dtype=torch.bool)

    def removable(self) -> int:
        """Neurons that may go, over all layers."""
        return sum(int(layer.removable.sum()) for layer in self.layers)

    def keep(self, classes: Tensor) -> int:
        """These turned out to be needed: none of their neurons may go from now on. How many of them might have."""
        needed, kept = self.nothing_gone(), 0
        needed[classes] = True
        for layer in self.layers:
            mine = layer.removable & needed[layer.classes]
            kept += int(mine.sum())
            layer.removable[mine] = False
        return kept

    def last_of_slots(self, before: Tensor, after: Tensor, ranking: Tensor | None = None) -> list[int]:
        """Classes that must stay after all, one for each tensor axis that would lose its last index.

        It is the one that ``ranking`` puts highest, the first of several.
        """
        emptied = (
            slot.classes[~before[slot.classes]]
            for slot in self.slots
            if bool(after[slot.classes].all()) and not bool(before[slot.classes].all())
        )
        return sorted({int(left[0 if ranking is None else ranking[left].argmax()]) for left in emptied})

    def voters(self) -> Tensor:
        """Per class: the number of layers that are read somewhere and carry it."""
        votes = torch.zeros(self.classes, dtype=torch.long)
        for layer in self.layers:
            if layer.reads:
                votes[layer.classes] += 1
        return votes

    def neurons(self, gone: Tensor | None = None) -> int:
        """Neurons over all layers that are still there."""
        if gone is None:
            return sum(layer.width for layer in self.layers)
        return sum(int((~gone[layer.classes]).sum()) for layer in self.layers)

    def parameters(self, parameter_names: set[str], gone: Tensor) -> int:
        """Entries of the named tensors at the widths that ``gone`` leaves."""
        return sum(numel(shape) for name, shape in self.sizes(gone).items() if name in parameter_names)

    def sizes(self, gone: Tensor) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor at the widths that ``gone`` leaves."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        for slot in self.slots:
            shapes[slot.tensor][slot.axis] = int((~gone[slot.classes]).sum())
        return {name: tuple(shape) for name, shape in shapes.items()}

    def flops(self, gone: Tensor, *, paper: bool = False) -> int:
        """Forward FLOPs of the example inputs (2 per multiply-add).

        ``paper=True`` counts as the paper does: the shrunken input width is ignored.
        """
        return round(sum(self.flops_by_operation(gone, paper=paper)))

    def flops_by_operation(self, gone: Tensor, *, paper: bool = False) -> list[float]:
        """The same for each contraction, in forward order."""
        found = []
        for op in self.contractions:
            share = 1.0
            if op.outputs is not None:
                share *= share_left(op.outputs, gone)
            if op.inputs is not None and not paper:
                share *= share_left(op.inputs, gone)
            found.append(op.flops * share)
        return found


def share_left(classes: Tensor, gone: Tensor) -> float:
    """Share of the positions in ``classes`` that is not gone."""
    return float((~gone[classes]).double().mean()) if len(classes) else 1.0


def numel(shape: tuple[int, ...]) -> int:
    """Entries of a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def removable_classes(graph: NeuronGraph) -> Tensor:
    """Per class: may it go?"""
    removable = graph.nothing_gone()
    for layer in graph.layers:
        removable[layer.classes[layer.removable]] = True
    return removable


def making_slots(graph: NeuronGraph) -> list[Slot]:
    """The axes of weights along which neurons are made: the filters."""
    made = {pair for layer in graph.layers for pair in layer.producers}
    return [slot for slot in graph.slots if (slot.tensor, slot.axis) in made]


def channel_slots(graph: NeuronGraph) -> list[Slot]:
    """The axes of weights that make or read neurons which may go: output and input channels.

    Weights that hold a channel each on their own (depthwise convolutions) are left out.
    """
    weights = {weight for layer in graph.layers for weight, _ in layer.producers}
    weights |= {read.weight for read in graph.reads if read.seat is None}
    weights -= {f"{path}.weight" if path else "weight" for path, _ in graph.attributes}
    removable = removable_classes(graph)
    return [slot for slot in graph.slots if slot.tensor in weights and bool(removable[slot.classes].any())]
