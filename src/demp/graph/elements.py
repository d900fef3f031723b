"""Elements of parameter axes, and which of them must live or go together (a union-find on whole vectors)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """What is known of one axis of a tensor that flows through the model.

    ``ids[i]`` is the element at position i; ``sites[i]`` the number of a set of activation sites whose output is read
    there; ``born`` the ordinal of the contraction that produced the axis; ``producer`` its weight.
    """

    ids: Tensor
    sites: Tensor
    born: int = -1
    producer: str | None = None

    def take(self, positions: Tensor) -> "Axis":
        """The axis whose position i is position ``positions[i]`` of this one; itself for all of them in order."""
        if len(positions) == len(self.ids) and torch.equal(positions, torch.arange(len(positions), device="cpu")):
            return self
        return Axis(self.ids[positions], self.sites[positions], self.born, self.producer)

    def bare(self) -> "Axis":
        """The same elements, of which nothing else is known."""
        return Axis(self.ids, torch.zeros_like(self.sites))

    def without_sites(self) -> "Axis":
        """The same elements, as they leave a contraction: no activation has been applied yet."""
        return Axis(self.ids, torch.zeros_like(self.sites), self.born, self.producer)


@dataclass(frozen=True)
class Labels:
    """Axes of one tensor (None: the axis carries no neurons), and where the tensor comes from."""

    axes: tuple[Axis | None, ...]
    source: str | None = None
    """Parameter or buffer name, if the tensor is one, a view of one, or a copy in another dtype or layout."""
    constant: bool = False
    """Computed from parameters and buffers alone."""
    computed_from: str | None = None
    """Parameter from which it is computed slice by slice, with zeros where a slice is zero (a standardised weight)."""
    scale: str | None = None
    """Of a standardised weight: the parameter that scales its slices."""
    noise: bool = False
    """Drawn at random in a training forward."""
    copies: bool = False
    """One head, repeated for all heads of a query."""
    uniform: bool = False
    """Made with one value everywhere, and not written into since: like noise it binds no neuron."""
    alike: frozenset[int] = frozenset()
    """Axes without neurons along which it is the same everywhere, as a mask for every head is along the heads."""
    nonnegative: bool = False
    """Certainly nowhere below zero."""
    squares_of: "tuple[Axis | None, ...]" = ()
    """Axes of the tensor of which these are the squares."""
    lifted: str = ""
    """Why it may be other than zero for neurons before any activation that were zero; empty if it is not."""
    chosen: Axis | None = None
    """Its values are positions along this axis: what uses them keeps the neurons."""

    @property
    def weight(self) -> str | None:
        """The parameter that makes what this tensor makes as a weight: it is one, or is computed from one."""
        return self.source or self.computed_from


def newest(labels: Labels) -> Axis | None:
    """The axis that the latest contraction produced: the neuron axis of an activation."""
    axes = [axis for axis in labels.axes if axis is not None and axis.born >= 0]
    return None if labels.constant or not axes else max(axes, key=lambda axis: axis.born)


class Elements:
    """Numbers elements, collects unions and freezes, and resolves them once at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self._balanced: list[tuple[Tensor, int, str]] = []
        self._site_sets: list[frozenset[int]] = [frozenset()]
        self._site_index: dict[frozenset[int], int] = {frozenset(): 0}

    def new(self, size: int) -> Axis:
        """A fresh axis of ``size`` elements."""
        ids = torch.arange(self.count, self.count + size, device="cpu")
        self.count += size
        return Axis(ids, torch.zeros(size, dtype=torch.long, device="cpu"))

    def union(self, a: Tensor, b: Tensor) -> None:
        """Element ``a[i]`` and element ``b[i]`` can only be removed together."""
        if a is not b:
            self._pairs.append((a, b))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """These elements, and all united with them, are never removed."""
        if len(ids):
            self._frozen.append((ids, reason))

    def must_balance(self, ids: Tensor, parts: int, reason: str) -> None:
        """Freeze ``ids`` unless its ``parts`` equal parts turn out to be the same classes, in the same order."""
        self._balanced.append((ids, parts, reason))

    def site_set(self, sites: frozenset[int]) -> int:
        """The number of a set of activation sites."""
        if sites not in self._site_index:
            self._site_index[sites] = len(self._site_sets)
            self._site_sets.append(sites)
        return self._site_index[sites]

    def sites_of(self, number: int) -> frozenset[int]:
        """The set of activation sites that has this number."""
        return self._site_sets[number]

    def renumber_sites(self, new: dict[int, int]) -> None:
        """Give sites other numbers; those without one leave their sets."""
        self._site_sets = [frozenset(new[site] for site in one if site in new) for one in self._site_sets]
        self._site_index = {one: number for number, one in reversed([*enumerate(self._site_sets)])}

    def merge_sites(self, a: Tensor, b: Tensor) -> Tensor:
        """Per position, the union of two site sets."""
        if torch.equal(a, b):
            return a
        count = len(self._site_sets)
        pairs, inverse = (a * count + b).unique(return_inverse=True)
        merged = [
            self.site_set(self._site_sets[pair // count] | self._site_sets[pair % count]) for pair in pairs.tolist()
        ]
        return torch.tensor(merged, device="cpu")[inverse]

    def roots(self) -> Tensor:
        """The representative of every element: the lowest of those that are removed together with it."""
        if not self._pairs:
            return torch.arange(self.count, device="cpu")
        a = torch.cat([pair[0] for pair in self._pairs])
        b = torch.cat([pair[1] for pair in self._pairs])
        return components(self.count, a, b)

    def resolve(self) -> tuple[Tensor, dict[int, str]]:
        """Root of every element, and the first reason for each frozen root."""
        root = self.roots()
        for ids, parts, reason in self._balanced:
            rows = root[ids].view(parts, -1)
            if not bool((rows == rows[0]).all()):
                self._frozen.append((ids, reason))
        first = torch.full((self.count,), -1, dtype=torch.long, device="cpu")
        for number, (ids, _) in reversed([*enumerate(self._frozen)]):
            first[root[ids]] = number
        frozen = (first >= 0).nonzero().flatten()
        numbers = first[frozen].tolist()
        return root, {r: self._frozen[number][1] for r, number in zip(frozen.tolist(), numbers, strict=True)}

    def inherit(self, other: "Elements", shared: int, where: str) -> None:
        """What another forward united and froze holds here as well; the first ``shared`` elements are the same ones."""
        root = other.roots()
        bound = (root[:shared] != torch.arange(shared, device="cpu")).nonzero().flatten()
        self.union(bound, root[bound])
        for ids, parts, reason in other._balanced:
            if bool((ids < shared).all()):
                self.must_balance(ids, parts, reason + where)
        for ids, reason in other._frozen:
            low = root[ids]
            self.freeze(low[low < shared], reason + where)


def components(count: int, a: Tensor, b: Tensor) -> Tensor:
    """Smallest element of the connected component of each of ``count`` elements, given edges a[i] - b[i]."""
    root = torch.arange(count, device="cpu")
    while True:
        ra, rb = root[a], root[b]
        if torch.equal(ra, rb):
            return root
        low = torch.minimum(ra, rb)
        root.scatter_reduce_(0, ra, low, "amin")
        root.scatter_reduce_(0, rb, low, "amin")
        while True:
            jumped = root[root]
            if torch.equal(jumped, root):
                break
            root = jumped


def unique_in_order(numbers: Tensor) -> Tensor:
    """Each number once, in order of first appearance."""
    values, inverse = numbers.unique(return_inverse=True)
    first = torch.full((len(values),), len(numbers), device="cpu")
    first.scatter_reduce_(0, inverse, torch.arange(len(numbers), device="cpu"), "amin")
    return numbers[first.sort().values]
