"""Plan a cut: which classes are removed, given the dead neurons, how narrow a layer may get, and what is excluded."""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.graph import GraphState, Layer
from demp.graph.neurons import removable_classes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How narrow a cut may make layers, and which layers it may touch. What a limit keeps stands in the cut's report.

    >>> Limits(floor=4, exclude=("head.*",)).allows("head.0")
    False

    Raises:
        UsageError: ``floor`` or ``multiple`` is below 1, or globs are a single string.
    """

    floor: int = 1
    """At least so many neurons stay in every layer, dead or not."""
    multiple: int = 1
    """Widths stay multiples of this (rounded up by keeping dead neurons); 8 is good advice on CUDA."""
    include: tuple[str, ...] = ("*",)
    """Globs of the names of layers that may be cut, as `demp.trace` names them."""
    exclude: tuple[str, ...] = ()
    """Globs of the names of layers that may not be cut; they count more than ``include``."""

    def __post_init__(self) -> None:
        if self.floor < 1:
            raise UsageError(f"floor is {self.floor}; every layer needs at least 1 neuron")
        if self.multiple < 1:
            raise UsageError(f"multiple is {self.multiple}; give a width multiple >= 1")

        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is the string {getattr(self, name)!r}; give a tuple of globs")

    def allows(self, name: str) -> bool:
        """Whether a layer of this name may be cut, by ``include`` and ``exclude``."""

        def matches(globs: Iterable[str]) -> bool:
            return any(fnmatch.fnmatchcase(name, glob) for glob in globs)

        return matches(self.include) and not matches(self.exclude)


@dataclass(frozen=True)
class Plan:
    """From which network to which, and what was held back."""

    before: GraphState
    after: GraphState
    held: dict[str, str]
    """Layer -> why some of its dead neurons stay."""
    limits: Limits = field(default_factory=Limits)
    ranking: Tensor | None = None
    """One number per class: the higher, the rather it stays."""

    @property
    def empty(self) -> bool:
        """Return whether the plan removes nothing."""
        return self.before == self.after

    @cached_property
    def removes(self) -> Tensor:
        """Boolean per class: those that are there before and not after."""
        return self.after.removed & ~self.before.removed

    @cached_property
    def layers(self) -> dict[str, Tensor]:
        """The neurons that it removes, by layer: boolean in dense numbering, of layers that lose some."""
        flags = {layer.name: self.removes[layer.classes] for layer in self.before.graph.layers}
        return {name: lost for name, lost in flags.items() if bool(lost.any())}

    @property
    def hash(self) -> str:
        """Equal on all ranks, or the ranks disagree."""
        return self.after.hash

    def without(self, reasons: Mapping[int, str]) -> "Plan":
        """The same cut without some classes, each with the reason why its neurons stay; limits hold again."""
        go = self.removes.clone()
        go[list(reasons)] = False
        left = rescued(self.before, go, self.limits, self.ranking)
        held = {name: [notes] for name, notes in self.held.items()}
        for layer in self.before.graph.layers:
            mine = Counter(reasons[c] for c in layer.classes.tolist() if c in reasons)
            more = int((go & ~left)[layer.classes].sum())
            notes = [f"{count} kept: {reason}" for reason, count in mine.items()]
            notes += [f"{more} kept for the minimum width"] if more else []
            if notes:
                held.setdefault(layer.name, []).extend(notes)
        return replace(self, after=self.before.without(left), held=joined(held))


def plan_cut(before: GraphState, dead: Mapping[str, Tensor], limits: Limits, ranking: Tensor | None = None) -> Plan:
    """Classes that go: dead in every layer that reads them, allowed, and not needed for a floor or a multiple.

    ``dead`` maps layer names to booleans in dense numbering. Of those that could go, the ones that ``ranking`` (one
    number per class) puts highest stay for floors and multiples, nan above all; without it, and of equals, the first.
    """
    held: dict[str, list[str]] = {}
    if ranking is not None:
        ranking = ranking.nan_to_num(torch.inf)
    wanted = agreed(before, dead, limits, held)
    go = rescued(before, wanted, limits, ranking)
    for layer in before.graph.layers:
        kept = int((wanted & ~go)[layer.classes].sum())
        if kept:
            held.setdefault(layer.name, []).append(f"{kept} dead neurons kept for the minimum width")
    return Plan(before, before.without(go), joined(held), limits, ranking)


def joined(held: Mapping[str, list[str]]) -> dict[str, str]:
    """Join the notes of each layer into one line."""
    return {name: "; ".join(notes) for name, notes in held.items()}


def rescued(before: GraphState, wanted: Tensor, limits: Limits, ranking: Tensor | None) -> Tensor:
    """Of the classes that are to go, those that may, once floors and multiples are respected."""
    graph, go = before.graph, wanted.clone()
    while True:  # what one layer keeps may be shared with another, whose width then is no multiple any more
        stay = graph.last_of_slots(before.removed, before.removed | go, ranking)
        for layer in graph.layers:
            short = shortage(layer, before.removed, go, limits)
            if short:
                stay += dearest(layer.classes[go[layer.classes]].unique(), ranking)[:short].tolist()
        if not stay:
            return go
        go[stay] = False


def dearest(classes: Tensor, ranking: Tensor | None) -> Tensor:
    """Classes in the order in which they are kept."""
    return classes if ranking is None else classes[ranking[classes].argsort(descending=True, stable=True)]


def agreed(before: GraphState, dead: Mapping[str, Tensor], limits: Limits, held: dict[str, list[str]]) -> Tensor:
    """Classes on which all layers that read them agree."""
    graph, removed = before.graph, before.removed
    removable = removable_classes(graph)
    for layer in graph.layers:
        flags = dead.get(layer.name)
        if flags is not None and bool((flags & ~layer.removable).any()):
            held.setdefault(layer.name, []).append(f"{int((flags & ~layer.removable).sum())} refused by the graph")
    for layer in graph.layers:
        if not limits.allows(layer.name):
            removable[layer.classes] = False
            if layer.name in dead and bool(dead[layer.name].any()):
                held.setdefault(layer.name, []).append("excluded")
    go = removable & graph.agreed(dead) & ~removed
    for layer in graph.layers:
        flags = dead.get(layer.name)
        if flags is None or not layer.reads:
            continue
        alone = flags & removable[layer.classes] & ~go[layer.classes] & ~removed[layer.classes]
        if bool(alone.any()):
            held.setdefault(layer.name, []).append(f"{int(alone.sum())} alive in a coupled layer")
    return go


def shortage(layer: Layer, removed: Tensor, go: Tensor, limits: Limits) -> int:
    """Neurons that would have to be kept to respect the limits."""
    width = int((~removed[layer.classes]).sum())
    left = int((~(removed | go)[layer.classes]).sum())
    if left == width:
        return 0
    target = max(left, limits.floor)
    target = -(-target // limits.multiple) * limits.multiple
    return min(target, width) - left
