"""A dispatch mode that follows neurons from axis to axis through one forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from demp.graph import attention_rules, convolution_rules, group_rules, index_rules, shape_rules, space_rules  # noqa: F401  (rules)
from demp.graph.call_following import follow_call, unseen
from demp.graph.calls import Seat
from demp.graph.drawn import FILLS, NO_NEURONS, binds, forget_uniform, is_noise
from demp.graph.elements import Axis, Elements, Labels, newest
from demp.graph.frames import Frames
from demp.graph.grids import Grid
from demp.graph.heads import repeats_one
from demp.graph.join_rules import planned
from demp.graph.nested import tensors_among
from demp.graph.operations import Call, UserCall
from demp.graph.parts import Norm
from demp.graph.recording import USUAL, ContractionSeen, Offer, ReadSeen, Recording, Site
from demp.graph.rules import find, unknown
from demp.graph.shuffle_rules import moved, settle, settled, takes_parts
from demp.graph.signs import signed
from demp.graph.sums import join
from demp.graph.zeros import follow_lifted, lift


class Tracer(TorchDispatchMode):
    """Follows neurons through one forward. What it saw ends in ``self.recording``."""

    def __init__(self, tensors: Mapping[str, Tensor], *, training: bool = False, offer: Offer = USUAL) -> None:
        super().__init__()
        self.training = training
        self.elements = Elements()
        self.recording = Recording(self.elements, offer)
        self.modules: list[str] = []
        self.frames = Frames()
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.sum_at: tuple[str, int, Any] | None = None
        """The sum of the user's code that runs now: module, number, function."""
        self.call_at: UserCall | None = None
        """The call of the user's code that runs now and depends on the number of neurons."""
        self.filled = False
        """Was any tensor made with one value everywhere?"""
        self.written: dict[int, Any] = {}
        """See `signed`."""
        self.paused = False
        self.groups: dict[str, int] = {}
        """Module path -> groups that it normalises."""
        self.parents: set[str] = set()
        """Paths of modules that have parts of their own."""
        self.recurrent: set[str] = set()
        """Paths of torch's own recurrent layers."""
        self.fused: set[str] = set()
        """Paths of modules that torch may run in one operation with all of their parts."""
        self._ticks = 0
        self._before: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        for name, tensor in tensors.items():
            axes = tuple(self.elements.new(size) for size in tensor.shape)
            self.recording.axes[name] = axes
            self._labels[tensor] = Labels(axes, name, constant=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then label what came out."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            dense = args[0].layout is torch.strided
            self._before = tuple(args[0].shape), args[0].stride() if dense else ()
        out = func(*args, **kwargs)
        space, _, name = func._schema.name.partition("::")
        with torch._C._DisableTorchDispatch():  # what the rules compute is no operation of the model
            self._follow(Call(name if space == "aten" else func._schema.name, func, args, kwargs, out))
        return out

    def _follow(self, call: Call) -> None:
        """Label what came out of an operation."""
        func, args, out = call.op, call.args, call.out
        rule = find(func, call.name) if func.namespace in ("aten", "prims") else unknown
        grid = self.raw(args[0]) if args and isinstance(args[0], Tensor) else None
        if isinstance(grid, Grid) and takes_parts(call, grid):
            settle(self, args[0], packed=True)
            grid = None
        after = moved(call, grid, settled(self, rule, call, self.call_at)) if isinstance(grid, Grid) else None
        if after is not None:
            self._labels[out] = after
            return
        result = rule(self, call)
        if self.filled and (func.is_view or func._schema.is_mutable):
            forget_uniform(self._labels, self.tensors(args))
        operands = [self.labels(t) for t in self.tensors((args, call.kwargs))]
        for labels in operands:
            if labels.chosen is not None:
                self.freeze_axis(labels.chosen, f"{call.name} uses positions of neurons")
        lifted = follow_lifted(self, call) if self.recording.offer.bare else ""
        constant = bool(operands) and all(labels.constant for labels in operands)
        outs, results = (list(one) if isinstance(one, (tuple, list)) else [one] for one in (out, result))
        for tensor, labels in zip(outs, results + [None] * len(outs), strict=False):
            if isinstance(tensor, Tensor):
                if labels is not None and len(labels.axes) != tensor.dim():
                    for axis in labels.axes:
                        self.freeze_axis(axis, f"{call.name} in an unexpected form")
                    labels = None
                if self.training and is_noise(call, operands):
                    labels = Labels((None,) * tensor.dim(), noise=True)
                labels = labels or self.bare(tensor, constant)
                labels = replace(labels, lifted=lifted) if lifted else labels
                if operands and repeats_one(call, operands[0]):
                    labels = replace(labels, copies=True)
                if call.name in FILLS:
                    labels, self.filled = replace(labels, uniform=True), True
                self._labels[tensor] = signed(call, operands, labels, self.written)
        known = [self._labels[tensor] for tensor in outs if isinstance(tensor, Tensor)]
        self.frames.operation(self.modules[-1] if self.modules else "", call.name, operands, known)

    def on_sum(self, seat: tuple[str, int], func: Any, args: tuple[Any, ...]) -> Tensor:
        """A sum in the user's code: remember which while its operation runs; one planned by a cut is one step."""
        if func is not join:
            self.sum_at = (*seat, func)
            try:
                return func(*args)
            finally:
                self.sum_at = None
        with torch._C._DisableTorchDispatch():
            lift(self, args[:2])
            labels = planned(self, seat, args[:2], args[2])
        out = unseen(self, join, args, {})
        self._labels[out] = labels
        self.frames.operation(seat[0], "add", [self.labels(side) for side in args[:2]], [labels])
        return out

    def on_call(self, seat: Seat, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call in the user's code that depends on the number of neurons: remember it while its operations run."""
        return follow_call(self, seat, func, args, kwargs)

    # What rules ask for ------------------------------------------------------------------------------

    def tensors(self, tree: Any) -> list[Tensor]:
        """All tensors among nested arguments."""
        return [*tensors_among(tree)]

    def labels(self, tensor: Tensor) -> Labels:
        """What is known of a tensor; channels in a grid are followed as a view from now on."""
        settle(self, tensor)
        found = self.raw(tensor)
        return found if isinstance(found, Labels) else self.bare(tensor)

    def raw(self, tensor: Tensor) -> Labels | Grid | None:
        """What is known of a tensor that may be on its way through a channel shuffle."""
        return self._labels.get(tensor)

    def learn(self, seat: Seat, operands: list[Tensor], found: list[tuple[Tensor, Labels]]) -> None:
        """A call of the user's code was followed as a whole: what it made."""
        self._labels.update(found)
        before = [labels for tensor in operands if isinstance(labels := self.raw(tensor), Labels)]
        self.frames.operation(seat[0], seat[1], before, [labels for _, labels in found])

    def note(self, tensor: Tensor, found: Labels | Grid) -> None:
        """What is known of a tensor from now on."""
        self._labels[tensor] = found

    def bare(self, tensor: Tensor, constant: bool = False) -> Labels:
        """Labels of a tensor without neurons."""
        return Labels((None,) * tensor.dim(), constant=constant)

    def layout_before(self, call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape and steps in memory of the first operand before the call (in-place operations change it)."""
        return self._before

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

    def where(self) -> str:
        """Path of the module that runs now."""
        return (self.modules[-1] if self.modules else "") or "the model itself"

    def meet(self, operands: list[Tensor], shape: Any, op: str, *, skip: int | None = None) -> Labels:
        """Operands are broadcast against each other: at each position, neurons share their fate."""
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
        """A tensor of one value with this many positions has the width of these neurons: others that it meets too."""
        for tensor in operands:
            labels, at = self.labels(tensor), tensor.dim() - from_end
            if not labels.uniform or at < 0 or labels.axes[at] is not None or tensor.stride(at) == 0:
                continue
            if tensor.shape[at] == len(axis.ids) > 1:
                axes = (*labels.axes[:at], axis.bare(), *labels.axes[at + 1 :])
                self._labels[tensor] = replace(labels, axes=axes)

    def unite(self, a: Axis, b: Axis) -> Axis:
        """One axis out of two that meet."""
        self.elements.union(a.ids, b.ids)
        newest = a if a.born >= b.born else b
        producer = a.producer if a.producer == b.producer else None  # what follows a sum follows no single weight
        return Axis(newest.ids, self.elements.merge_sites(a.sites, b.sites), newest.born, producer)

    def site(self, labels: Labels, kind: str, *, certain: bool = True) -> Labels:
        """An activation, or a step of one (not certain); its neuron axis is the newest."""
        axis = newest(labels)
        if axis is None:
            return labels
        dim = next(d for d, other in enumerate(labels.axes) if other is axis)
        return self.site_on(labels, dim, kind, certain=certain)

    def site_on(self, labels: Labels, dim: int, kind: str, *, certain: bool = True) -> Labels:
        """A site whose neurons lie on this axis."""
        axis = labels.axes[dim]
        assert axis is not None
        number = len(self.recording.sites)
        module = self.modules[-1] if self.modules else ""
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
