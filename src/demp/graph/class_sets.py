"""A set for every class of neurons: the layers that carry it, the weights that make it."""

from typing import Any

import torch
from torch import Tensor


class ClassSets:
    """Many classes have the same set, so that each class holds the number of one of a few."""

    def __init__(self, classes: int) -> None:
        self._number = torch.zeros(classes, dtype=torch.long, device="cpu")
        self._sets: list[frozenset[Any]] = [frozenset()]
        self._index: dict[frozenset[Any], int] = {frozenset(): 0}

    def add(self, classes: Tensor, item: Any) -> None:
        """Put ``item`` into the sets of these classes."""
        held = self._number[classes]
        for number in held.unique().tolist():
            self._number[classes[held == number]] = self._numbered(self._sets[number] | {item})

    def of(self, classes: Tensor) -> set[Any]:
        """What is in the set of any of these classes."""
        return set().union(*(self._sets[number] for number in self._number[classes].unique().tolist()))

    def _numbered(self, one: frozenset[Any]) -> int:
        if one not in self._index:
            self._index[one] = len(self._sets)
            self._sets.append(one)
        return self._index[one]
