"""The neuron graph of a model, and the network at one moment: plain frozen data, no reference to the model.

A *class* is the set of all tensor slices that must go together; classes are numbered once, on the dense model, and
keep their number for the whole run. A neuron of a layer is one class. What was removed so far is a boolean vector over
classes; everything else follows from it (`GraphState`).
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.graph.earlier import EarlierMethods
from demp.graph.order import moved, plan_join, positions, ranks_of
from demp.graph.parts import STREAM, Contraction, Join, Layer, Norm, Read, Refusal, SizedCall, Slot, Stream
from demp.graph.sums import JoinPlan


@dataclass(frozen=True)
class NeuronGraph(EarlierMethods):
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
    heads: Mapping[str, tuple[tuple[Tensor, int], ...]] = field(default_factory=dict)
    """Module path -> of its attention the class of each head, and the channels of one; by query, key and value."""
    sharing: frozenset[str] = frozenset()
    """Paths of modules in whose attention all heads of the query share one key and value."""
    notes: tuple[str, ...] = ()
    """Residual sums whose two sides share their neurons because training has other sums than evaluation."""

    def layer(self, name: str) -> Layer:
        """Return the layer called ``name``.

        Raises:
            UsageError: there is none; the message names the nearest one.
        """
        if name not in self.index:
            import difflib

            near = difflib.get_close_matches(name, self.index, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"no layer called {name!r} in the graph{hint}")
        return self.index[name]

    def none_removed(self) -> Tensor:
        """Return a boolean per class that is false for all: the dense model."""
        return torch.zeros(self.classes, dtype=torch.bool, device="cpu")

    def removable(self) -> int:
        """Return how many neurons may be removed, over all layers."""
        return sum(int(layer.removable.sum()) for layer in self.layers)

    def refused_layers(self) -> set[str]:
        """Return the names of layers none of whose neurons may be removed."""
        return {layer.name for layer in self.layers if not bool(layer.removable.any())}

    def keep(self, classes: Tensor) -> int:
        """Refuse these classes from now on; returns how many neurons could have been removed and no longer can."""
        needed, kept = self.none_removed(), 0
        needed[classes] = True
        for layer in self.layers:
            mine = layer.removable & needed[layer.classes]
            kept += int(mine.sum())
            layer.removable[mine] = False
        return kept

    def last_of_slots(self, before: Tensor, after: Tensor, ranking: Tensor | None = None) -> list[int]:
        """Return classes that must stay, one for each tensor axis that would lose its last index.

        It is the one that ``ranking`` (a number per class) puts highest, the first of several. ``before`` and ``after``
        are booleans per class: what is removed, and what would be.
        """
        emptied = (
            slot.classes[~before[slot.classes]]
            for slot in self.slots
            if bool(after[slot.classes].all()) and not bool(before[slot.classes].all())
        )
        return sorted({int(left[0 if ranking is None else ranking[left].argmax()]) for left in emptied})

    def voters(self) -> Tensor:
        """Return, per class, the number of layers that are read somewhere and carry it."""
        votes = torch.zeros(self.classes, dtype=torch.long, device="cpu")
        for layer in self.layers:
            if layer.reads:
                votes[layer.classes] += 1
        return votes

    def agreed(self, dead: Mapping[str, Tensor]) -> Tensor:
        """Return, per class, whether it is in ``dead`` (layer -> boolean per neuron) of all layers that vote on it."""
        votes = torch.zeros(self.classes, dtype=torch.long, device="cpu")
        for layer in self.layers:
            if layer.reads and layer.name in dead:
                votes[layer.classes] += dead[layer.name]
        voters = self.voters()
        return (voters > 0) & (votes == voters)

    def at(self, removed: Tensor) -> "GraphState":
        """Return the network without the classes that are ``removed`` (a boolean per class)."""
        return GraphState(self, removed.clone())

    @cached_property
    def dense(self) -> "GraphState":
        """The network before anything was removed."""
        return self.at(self.none_removed())


@dataclass(frozen=True, eq=False)
class GraphState:
    """A network at one moment: which classes of neurons are removed, and everything that follows from it.

    A cut is two of them, before and after. Made by `NeuronGraph.at`; nothing of it changes afterwards.
    """

    graph: NeuronGraph
    removed: Tensor
    """Boolean per class."""

    @cached_property
    def ranks(self) -> Tensor:
        """Per class: -1 if it is removed, else its rank among the channels of its stream (0 for all others)."""
        return ranks_of(self.graph.streams, self.removed)

    @cached_property
    def _kept(self) -> dict[bytes, Tensor]:
        """Positions by the classes of an axis: many tensors share theirs."""
        return {}

    def kept(self, classes: Tensor) -> Tensor:
        """Positions of an axis with these classes that are still there, dense numbering, in the order of memory.

        Not to be written into: the next caller gets the same tensor.
        """
        key = classes.numpy().tobytes()
        if key not in self._kept:
            self._kept[key] = positions(classes, self.ranks)
        return self._kept[key]

    def present(self, classes: Tensor) -> Tensor:
        """The classes of an axis that are still there, in the order in which they lie in memory."""
        return classes[self.kept(classes)]

    def index_into(self, before: "GraphState", classes: Tensor) -> Tensor:
        """Where what is there now lay ``before``: indices into the axis as it was."""
        return moved(before.kept(classes), self.kept(classes), len(classes))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphState):
            return NotImplemented
        return self is other or (other.graph is self.graph and torch.equal(other.removed, self.removed))

    def without(self, removed: Tensor) -> "GraphState":
        """The network once these classes are removed, too."""
        return self.graph.at(self.removed | removed)

    @cached_property
    def hash(self) -> str:
        """What is removed, in a few letters."""
        return hashlib.sha256(bytes(self.removed.to(torch.uint8).tolist())).hexdigest()[:16]

    def owners(self, slots: Iterable[Slot]) -> list[Tensor]:
        """Per tensor axis: the class of each index that is there, in the order of memory; 0 if it may never go."""
        removable = removable_classes(self.graph)
        present = [self.present(slot.classes) for slot in slots]
        return [torch.where(removable[classes], classes, 0) for classes in present]

    @cached_property
    def residual_adds(self) -> dict[str, dict[int, JoinPlan]]:
        """Module path -> number of the residual sum -> how its two widths are added."""
        plans: dict[str, dict[int, JoinPlan]] = defaultdict(dict)
        for join in self.graph.joins:
            plans[join.module][join.number] = plan_join(join, self.ranks)
        return dict(plans)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer."""
        shapes = {name: list(shape) for name, shape in self.graph.shapes.items()}
        for slot in self.graph.slots:
            shapes[slot.tensor][slot.axis] = int((~self.removed[slot.classes]).sum())
        return {name: tuple(shape) for name, shape in shapes.items()}

    def parameters(self, names: Collection[str]) -> int:
        """How many entries the named tensors have in this state, all together."""
        return sum(numel(shape) for name, shape in self.shapes.items() if name in names)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Return the number of remaining neurons of each layer."""
        return {layer.name: int((~self.removed[layer.classes]).sum()) for layer in self.graph.layers}

    @property
    def neurons(self) -> int:
        """Return the number of remaining neurons over all layers."""
        return sum(self.widths.values())

    def flops(self, *, paper: bool = False) -> int:
        """Forward FLOPs of the example inputs (2 per multiply-add).

        ``paper=True`` counts as the paper does: the shrunken input width is ignored.
        """
        return self._flops[paper]

    @cached_property
    def _flops(self) -> dict[bool, int]:
        return {paper: round(sum(self.flops_by_operation(paper=paper))) for paper in (False, True)}

    def flops_by_operation(self, *, paper: bool = False) -> list[float]:
        """The same for each contraction, in forward order."""
        found = []
        for op in self.graph.contractions:
            share = 1.0
            if op.outputs is not None:
                share *= share_left(op.outputs, self.removed)
            if op.inputs is not None and not paper:
                share *= share_left(op.inputs, self.removed)
            found.append(op.flops * share)
        return found


def share_left(classes: Tensor, removed: Tensor) -> float:
    """Share of the positions in ``classes`` that is not removed."""
    return float((~removed[classes]).double().mean()) if len(classes) else 1.0


def numel(shape: tuple[int, ...]) -> int:
    """Entries of a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


def removable_classes(graph: NeuronGraph) -> Tensor:
    """A boolean per class: may its neurons be removed?"""
    removable = graph.none_removed()
    for layer in graph.layers:
        removable[layer.classes[layer.removable]] = True
    return removable


def making_slots(graph: NeuronGraph) -> list[Slot]:
    """The axes of weights along which neurons are made: the filters. Nothing makes the channels of a stream alone."""
    made = {pair for layer in graph.layers if layer.activation != STREAM for pair in layer.producers}
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
