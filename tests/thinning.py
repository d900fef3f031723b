"""Which cases of a product are quick: enough to show every value; ``make test-slow`` runs all of them."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def covering(*axes: Collection[Any], together: int = 1) -> list[Any]:
    """All combinations of the values of ``axes``, for ``parametrize``; all but a covering few are slow.

    The few show every value of every axis, with ``together=2`` every pair of values of two axes, and so on.
    """
    values = [list(axis) for axis in axes]
    every = list(itertools.product(*(range(len(axis)) for axis in values)))
    parts = list(itertools.combinations(range(len(values)), together))
    shown = {case: {(part, tuple(case[i] for i in part)) for part in parts} for case in every}
    missing = set().union(*shown.values())
    quick: set[tuple[int, ...]] = set()
    used: Counter[tuple[int, int]] = Counter()
    while missing:
        best = max(every, key=lambda case: (len(shown[case] & missing), -sum(used[at] for at in enumerate(case))))
        quick.add(best)
        used.update(enumerate(best))
        missing -= shown[best]
    found = []
    for case in every:
        given = [axis[i] for axis, i in zip(values, case, strict=True)]
        found.append(pytest.param(*given, marks=() if case in quick else (pytest.mark.slow,)))
    return found


def mostly_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Cases of one argument for ``parametrize``; those that are not in ``quick`` are slow."""
    return [pytest.param(case, marks=() if case in quick else (pytest.mark.slow,)) for case in cases]
