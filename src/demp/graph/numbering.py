"""Classes of elements that are removed together: their numbers, which of them stay, and why."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from demp.graph.elements import Axis
from demp.graph.recording import Recording


@dataclass(frozen=True)
class Numbering:
    """The elements of a recording, resolved: which of them are one class, and which classes stay."""

    root: Tensor
    """Element -> the element that stands for its class."""
    number: Tensor
    """Such an element -> its class."""
    reasons: dict[int, str]
    """Such an element -> why its class stays."""
    classes: int

    @cached_property
    def class_of(self) -> Tensor:
        """Return the class of every element."""
        return self.number[self.root]

    @cached_property
    def frozen(self) -> Tensor:
        """Return for every class whether it must stay; class 0 always does."""
        frozen = torch.zeros(self.classes, dtype=torch.bool, device="cpu")
        frozen[0] = True
        frozen[self.number[list(self.reasons)]] = True
        return frozen

    def of(self, axis: Axis) -> Tensor:
        """Return the classes along an axis."""
        return self.class_of[axis.ids]

    def of_some(self, axis: Axis | None) -> Tensor | None:
        """The same where there may be no axis."""
        return None if axis is None else self.of(axis)


def numbered(recording: Recording) -> Numbering:
    """Number the roots that some activation carries 1, 2, …; all others are class 0, which never goes."""
    root, reasons = recording.elements.resolve()
    number = torch.zeros(len(root), dtype=torch.long, device="cpu")
    carried = [root[site.ids] for site in recording.sites]
    roots = torch.cat(carried).unique() if carried else torch.zeros(0, dtype=torch.long, device="cpu")
    number[roots] = torch.arange(1, len(roots) + 1, device="cpu")
    return Numbering(root, number, reasons, len(roots) + 1)


def reasons_by_class(numbering: Numbering) -> dict[int, str]:
    """Class -> why it stays: the first reason that was found."""
    why: dict[int, str] = {}
    classes = numbering.class_of[list(numbering.reasons)].tolist()
    for c, reason in zip(classes, numbering.reasons.values(), strict=True):
        why.setdefault(c, reason)
    return why
