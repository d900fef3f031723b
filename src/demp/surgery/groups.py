"""What reads neurons, in groups that share one constant: where that can go, and which neuron could carry it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.activity.moments import Moments
from demp.surgery.readers import Home, Readers, Use

UNIFORM = 1e-9
"""Spread of a constant over positions, over its size, that is rounding: more means that borders see less of it."""


@dataclass(frozen=True)
class UseGroup:
    """All uses of one view of a weight: they share one constant per position."""

    uses: tuple[Use, ...]
    homes: tuple[Home, ...]
    """One or more that take the constant of all uses; none: there is no place."""
    moments: Moments
    classes: Tensor
    """Of each position that is there."""
    carriable: bool
    """Do these uses alone read the weight, so that one neuron may take over from another?"""

    @property
    def weight(self) -> str:
        """Return the name of the parameter that all uses share."""
        return self.uses[0].read.weight

    def constants(self, going: Tensor) -> Tensor:
        """Per position: the constant if its class goes, else 0."""
        return torch.where(going[self.classes], self.moments.mean, 0.0)

    def made_of(self, going: Tensor) -> tuple[Tensor, bool]:
        """Per channel: what the constants of these classes add, on average over positions; is it the same at all?"""
        call = self.uses[0].call
        assert call is not None
        field = call.on_constants(self.constants(going), self.uses[0].read.axis)
        spread = float((field.amax(1) - field.amin(1)).max()) if field.numel() else 0.0
        return field.mean(1), spread <= UNIFORM * float(field.abs().max() if field.numel() else 0.0)


def every(readers: Readers) -> Iterator[Use]:
    """All uses of weights, and sums, that the forward showed."""
    for some in readers.uses.values():
        yield from some


def grouped(readers: Readers, masked: set[str]) -> list[UseGroup]:
    """The uses of each view of a weight along one axis, in the order of the network."""
    found: dict[tuple[object, ...], list[Use]] = defaultdict(list)
    for use in every(readers):
        if use.call is not None:
            view = use.call.view
            found[use.read.weight, use.read.weight_axis, view.data_ptr(), view.shape, view.stride()].append(use)
    read = Counter(use.read.weight for use in every(readers))
    axes: dict[str, set[int]] = defaultdict(set)
    for use in every(readers):
        axes[use.read.weight].add(use.read.weight_axis)
    groups = []
    for uses in found.values():
        name, first = uses[0].read.weight, uses[0]
        pooled = first.moments
        for use in uses[1:]:
            pooled = pooled.merged(use.moments)
        alone = readers.weights[name] == read[name] and len(axes[name]) == 1 and name not in masked
        carriable = alone and weight_axis(first, readers) is not None
        classes = first.read.classes[first.here]
        groups.append(UseGroup(tuple(uses), homes_of(uses, readers), pooled, classes, carriable))
    return groups


def homes_of(uses: list[Use], readers: Readers) -> tuple[Home, ...]:
    """The places that take the constant of these uses and of nothing else; none if one use has no place."""
    homes = [readers.home(use) for use in uses]
    if any(home is None for home in homes):
        return ()
    times = Counter(home.tensor for home in homes if home is not None)
    for name, count in times.items():
        if name is not None and (readers.touched[name] != count or readers.tensors[name].dim() != 1):
            return ()
    return tuple(dict.fromkeys(home for home in homes if home is not None))


def weight_axis(use: Use, readers: Readers) -> int | None:
    """Which axis of the weight, as its contraction sees it, meets the neurons; None where it is a copy."""
    assert use.call is not None
    whole, view, stored = readers.tensors[use.read.weight], use.call.view, use.read.weight_axis
    dense = torch.empty_like(whole, device="meta").stride() == whole.stride()
    if not dense or view.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    fits = (view.stride(d) == whole.stride(stored) and view.shape[d] == whole.shape[stored] for d in range(view.dim()))
    return next((d for d, fit in enumerate(fits) if fit), None)


def steadiness(group: UseGroup, c: int) -> float:
    """Largest deviation of a class over its mean, over its positions; inf where it has none or a mean of zero."""
    at = group.classes == c
    share = group.moments.deviation[at] / group.moments.mean[at].abs()
    return float(share.max()) if len(share) and not bool(share.isnan().any()) else torch.inf


def carried_positions(group: UseGroup, left: Tensor, carrier: int) -> tuple[Tensor, Tensor]:
    """Positions that go, and for each the position of the carrier that stands in for it."""
    home = (group.classes == carrier).nonzero().flatten()
    goes, carries = [], []
    for c in group.classes[left[group.classes]].unique().tolist():
        goes.append((group.classes == c).nonzero().flatten())
        carries.append(home)
    return torch.cat(goes), torch.cat(carries)


def carried(use: Use, readers: Readers, goes: Tensor, carries: Tensor, share: Tensor) -> Tensor:
    """What a weight gains, in its own shape, so that some positions stand in for others."""
    call, axis = use.call, weight_axis(use, readers)
    assert call is not None and axis is not None
    whole, view = readers.tensors[use.read.weight].detach(), call.view.detach()
    for dim in range(view.dim()):
        view = view if view.stride(dim) else view.narrow(dim, 0, 1)  # one weight for a whole batch, expanded
    gain = torch.zeros_like(whole, dtype=torch.float64)
    offset = view.storage_offset() - whole.storage_offset()
    part, wide = gain.as_strided(view.shape, view.stride(), offset), view.double()
    inside = view.shape[axis]
    blocks = len(use.here) // inside  # the groups of a convolution lie one after the other among its outputs
    each = view.shape[0] // blocks
    line = [-1 if dim == axis else 1 for dim in range(view.dim())]
    for block in range(blocks):
        rows = slice(block * each, (block + 1) * each) if blocks > 1 else slice(None)
        mine = goes // inside == block if blocks > 1 else goes >= 0
        taken = wide[rows].index_select(axis, (goes[mine] % inside).to(wide.device))
        added = taken * share[mine].to(wide).view(line)
        part[rows].index_add_(axis, (carries[mine] % inside).to(wide.device), added)
    return gain
