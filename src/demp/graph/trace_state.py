"""What is known while one forward is followed: labels of its tensors, what runs now, and what was seen so far."""

from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from demp.graph.calls import CallSeat
from demp.graph.drawn import NO_NEURONS, binds
from demp.graph.elements import Axis, Elements, Labels, newest
from demp.graph.frames import Frames
from demp.graph.grids import Grid
from demp.graph.nested import tensors_among
from demp.graph.operations import UserCall
from demp.graph.parts import Norm
from demp.graph.recording import USUAL, ContractionSeen, Offer, ReadSeen, Recording, Site


class TraceState:
    """One forward that is being followed. Rules ask it and write into it; what was seen ends in ``recording``."""

    def __init__(self, tensors: Mapping[str, Tensor], *, training: bool = False, offer: Offer = USUAL) -> None:
        self.training = training
        self.elements = Elements()
        self.recording = Recording(self.elements, offer)
        self.known: MutableMapping[Tensor, Labels | Grid] = WeakIdKeyDictionary()
        """What is known of each tensor."""
        self.modules: list[str] = []
        """Paths of the modules that run now, the innermost last."""
        self.frames = Frames()
        self.sum_at: tuple[str, int, Any] | None = None
        """The sum of the user's code that runs now: module, number, function."""
        self.call_at: UserCall | None = None
        """The call of the user's code that runs now and depends on the number of neurons."""
        self.layout_before: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        """Shape and steps in memory that the first operand had before the operation, which may have changed it."""
        self.filled = False
        """Was any tensor made with one value everywhere?"""
        self.repeated = False
        """Is any tensor known to be the same along an axis?"""
        self.written: dict[int, Any] = {}
        """See `signed`."""
        self.paused = False
        """Do operations run without being followed?"""
        self.groups: dict[str, int] = {}
        """Module path -> groups that it normalises."""
        self.parents: set[str] = set()
        """Paths of modules that have parts of their own."""
        self.recurrent: set[str] = set()
        """Paths of torch's own recurrent layers."""
        self.buffers: set[str] = set()
        """Names of the model's buffers."""
        self.mixers: set[str] = set()
        """Parameters that multiply positions from the left, as a learned adjacency does, and let neurons pass."""
        self.fused: set[str] = set()
        """Paths of modules that torch may run in one operation with all of their parts."""
        self._ticks = 0
        for name, tensor in tensors.items():
            axes = tuple(self.elements.new(size) for size in tensor.shape)
            self.recording.axes[name] = axes
            self.known[tensor] = Labels(axes, name, constant=True)

    def tensors(self, tree: Any) -> list[Tensor]:
        """All tensors among nested arguments."""
        return [*tensors_among(tree)]

    def labels(self, tensor: Tensor) -> Labels:
        """What is known of a tensor; channels in a grid are followed as a view from now on."""
        found = self.known.get(tensor)
        if isinstance(found, Grid):
            self.settle(tensor)
            found = self.known.get(tensor)
        return found if isinstance(found, Labels) else self.bare(tensor)

    def raw(self, tensor: Tensor) -> Labels | Grid | None:
        """What is known of a tensor that may be on its way through a channel shuffle."""
        return self.known.get(tensor)

    def settle(self, tensor: Tensor, *, parts: int | None = None) -> None:
        """Channels in a grid are followed as a view from now on: see `Settle`."""
        found = self.known.get(tensor)
        if isinstance(found, Grid):
            with torch._C.DisableTorchFunction():  # a hook may ask: what is computed here is no call of the user's
                self.known[tensor] = found.settle(parts=parts)

    def learn(self, seat: CallSeat, operands: list[Tensor], found: list[tuple[Tensor, Labels]]) -> None:
        """A call of the user's code was followed as a whole: what it made."""
        self.known.update(found)
        before = [labels for tensor in operands if isinstance(labels := self.raw(tensor), Labels)]
        self.frames.operation(seat[0], seat[1], before, [labels for _, labels in found])

    def note(self, tensor: Tensor, found: Labels | Grid) -> None:
        """What is known of a tensor from now on."""
        self.known[tensor] = found

    def bare(self, tensor: Tensor, constant: bool = False) -> Labels:
        """Labels of a tensor without neurons."""
        return Labels((None,) * tensor.dim(), constant=constant)

    def tick(self) -> int:
        """A new ordinal, for the axis that a contraction produces."""
        self._ticks += 1
        return self._ticks

    def fixed(self, size: int, reason: str) -> Axis:
        """Return a new axis of ``size`` positions that can never be removed."""
        axis = self.elements.new(size)
        self.elements.freeze(axis.ids, reason)
        return axis

    def freeze_axis(self, axis: Axis | None, reason: str) -> None:
        """Neurons on this axis stay."""
        if axis is not None:
            self.elements.freeze(axis.ids, f"{reason} (at {self.where()})")

    def freeze_tensor(self, tensor: Tensor, reason: str) -> None:
        """Neurons on any axis of this tensor stay."""
        labels = self.labels(tensor)
        for axis in (*labels.axes, labels.chosen):
            self.freeze_axis(axis, reason)

    def running(self) -> str:
        """Path of the module that runs now; empty: the model itself."""
        return self.modules[-1] if self.modules else ""

    def where(self) -> str:
        """Path of the module that runs now, or words for the model itself."""
        return self.running() or "the model itself"

    def meet(self, operands: list[Tensor], shape: Any, op: str, *, skip: int | None = None) -> Labels:
        """Operands are broadcast against each other: at each position, neurons are removed together."""
        axes: list[Axis | None] = []
        all_labels = [self.labels(t) for t in operands]
        for dim in range(len(shape)):
            met: Axis | None = None
            plain = False
            for tensor, labels in zip(operands, all_labels, strict=True):
                at = dim - (len(shape) - tensor.dim())
                if at < 0 or dim == skip:
                    continue
                axis, size = labels.axes[at], tensor.shape[at]
                if axis is None:
                    plain = plain or (size == shape[dim] and size > 1 and binds(labels, tensor, at))
                elif size != shape[dim]:
                    self.freeze_axis(axis, "a single neuron is broadcast")
                else:
                    met = axis if met is None else self.unite(met, axis)
            if met is not None and plain:
                self.freeze_axis(met, f"{op} with {NO_NEURONS}")
            if met is not None and dim != skip:
                self.fit(operands, len(shape) - dim, met)
            axes.append(met)
        return Labels(tuple(axes), constant=all(labels.constant for labels in all_labels))

    def fit(self, operands: list[Tensor], from_end: int, axis: Axis) -> None:
        """A tensor of one value along this many positions has the width of these neurons: others that it meets too."""
        for tensor in operands:
            labels, at = self.labels(tensor), tensor.dim() - from_end
            same = labels.uniform or at in labels.alike
            if not same or at < 0 or labels.axes[at] is not None or tensor.stride(at) == 0:
                continue
            if tensor.shape[at] == len(axis.ids) > 1:
                axes = (*labels.axes[:at], axis.bare(), *labels.axes[at + 1 :])
                self.known[tensor] = replace(labels, axes=axes)

    def unite(self, a: Axis, b: Axis) -> Axis:
        """One axis out of two that meet."""
        self.elements.union(a.ids, b.ids)
        last = a if a.born >= b.born else b
        producer = a.producer if a.producer == b.producer else None  # what follows a sum follows no single weight
        return Axis(last.ids, self.elements.merge_sites(a.sites, b.sites), last.born, producer)

    def site(self, labels: Labels, kind: str, *, certain: bool = True) -> Labels:
        """An activation, or a step of one (not certain); its neuron axis is the newest."""
        axis = newest(labels)
        if axis is None:
            return labels
        dim = next(d for d, other in enumerate(labels.axes) if other is axis)
        passed = labels if axis.producer in self.mixers else None
        labels = self.site_on(labels, dim, kind, certain=certain)
        for at, other in enumerate(passed.axes if passed is not None else ()):
            if at != dim and other is not None and not bool(other.sites.any()):
                labels = self.site_on(labels, at, kind, certain=False)  # a layer if something reads these neurons
        return labels

    def site_on(self, labels: Labels, dim: int, kind: str, *, certain: bool = True) -> Labels:
        """A site whose neurons lie on this axis."""
        axis = labels.axes[dim]
        assert axis is not None
        number = len(self.recording.sites)
        module = self.running()
        self.recording.sites.append(Site(module, kind, axis.ids, certain, module in self.parents))
        mark = self.elements.site_set(frozenset([number]))
        axes = list(labels.axes)
        # what comes next reads a function of what the weight produced
        axes[dim] = Axis(axis.ids, torch.full_like(axis.sites, mark), axis.born, None)
        return Labels(tuple(axes), constant=labels.constant)

    def use(self, weight: str) -> int:
        """How many times the weight was used before in this forward."""
        use = self.recording.uses.get(weight, 0)
        self.recording.uses[weight] = use + 1
        return use

    def own_axis(self, view: Labels, axis: Axis | None) -> int | None:
        """Which axis of the stored tensor a view of it shows as ``axis``; None for a part of one."""
        if view.weight is None or axis is None:
            return None
        return next((d for d, own in enumerate(self.recording.axes[view.weight]) if own.ids is axis.ids), None)

    def read(self, seen: ReadSeen) -> None:
        """Record that a contraction reads neurons."""
        self.recording.reads.append(seen)

    def contraction(self, weight: str | None, flops: int, reads: Axis | None, made: Axis | None) -> None:
        """Count the arithmetic of one contraction."""
        self.recording.contractions.append(ContractionSeen(self.where(), weight, flops, reads, made))

    def norm(self, scale: str | None, shift: str | None, producer: str | None) -> None:
        """A batch norm follows the weight ``producer``."""
        self.recording.norms.append(Norm(scale, shift, producer))

    def bias(self, weight: str | None, bias: str | None) -> None:
        """``bias`` is added to what ``weight`` produces."""
        if weight is not None and bias is not None:
            self.recording.norms.append(Norm(None, bias, weight))

    def attribute(self, weight: str, name: str, ids: Tensor) -> None:
        """The module that owns ``weight`` counts ``ids`` in an attribute."""
        self.recording.attributes[weight.rpartition(".")[0], name] = ids
