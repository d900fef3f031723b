"""What the processes of one run tell each other. Without a process group nothing here does anything.

Every function that takes a ``group`` is called by all ranks of it, in the same order, or by none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from demp.errors import CutError, DempError

ProcessGroup = Any
"""A ``torch.distributed.ProcessGroup`` of several ranks, or None: this process is alone."""


def everyone() -> ProcessGroup:
    """The group of all ranks, if there are several."""
    return unless_alone(dist.group.WORLD) if dist.is_available() and dist.is_initialized() else None


def unless_alone(group: ProcessGroup) -> ProcessGroup:
    """The group itself, or None if this process is alone in it."""
    return group if group is not None and dist.get_world_size(group) > 1 else None


def place(group: ProcessGroup) -> tuple[int, int]:
    """This process's number in the group, and how many there are."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def is_main_process(group: ProcessGroup) -> bool:
    """Is this the rank that logs and writes?"""
    return place(group)[0] == 0


def gathered(value: Any, group: ProcessGroup) -> list[Any]:
    """A small plain value of every rank, in the order of the ranks."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def total(values: Sequence[float], group: ProcessGroup) -> list[float]:
    """The sum over ranks of each number."""
    return list(values) if group is None else [sum(column) for column in zip(*gathered(values, group), strict=True)]


def any_of(flag: bool, group: ProcessGroup) -> bool:
    """Is it so on any rank?"""
    return any(gathered(flag, group))


def highest(values: Sequence[float | None], group: ProcessGroup) -> list[float | None]:
    """The largest over ranks of each number; None where no rank has one."""
    return [
        max((v for v in column if v is not None), default=None) for column in zip(*gathered(values, group), strict=True)
    ]


def mean(values: Tensor, group: ProcessGroup) -> Tensor:
    """The mean over ranks, equal to the bit on all of them."""
    return values if group is None else torch.stack(gathered(values.cpu(), group)).mean(0).to(values.device)


def common(flags: Mapping[str, Tensor], group: ProcessGroup) -> dict[str, Tensor]:
    """Flags that are set on every rank."""
    first, *others = gathered(dict(flags), group)
    return {name: torch.stack([flag, *(other[name] for other in others)]).all(0) for name, flag in first.items()}


@contextmanager
def together(group: ProcessGroup) -> Iterator[None]:
    """What happens inside succeeds on all ranks, or fails on all of them.

    It must not wait for other ranks itself where one of them may fail first.

    Raises:
        ElsewhereError: it failed on another rank only, which raises its own error; or demp refused it here, while it
            failed on another rank with an unexpected error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as mine:  # whatever it is, the other ranks must hear of it before it leaves
        error = mine
    mine = None if error is None else (f"{error}" or type(error).__name__, isinstance(error, DempError))
    failed = {rank: found for rank, found in enumerate(gathered(mine, group)) if found is not None}
    faults = [text for text, expected in failed.values() if not expected]
    if error is not None and not (faults and isinstance(error, DempError)):
        raise error
    if failed:
        reason = next(iter(faults or [text for text, _ in failed.values()]))
        raise ElsewhereError(f"{named(failed)} failed, so all ranks stopped there: {reason}", fault=bool(faults))


class ElsewhereError(CutError):
    """Another rank failed; nothing was cut on this one either. ``fault``: with an error that is not demp's own."""

    def __init__(self, message: str, *, fault: bool = False) -> None:
        super().__init__(message)
        self.fault = fault


def raise_if_disagreement(
    what: str, value: Any, group: ProcessGroup, *, remedy: str, kind: type[DempError] = CutError
) -> None:
    """All ranks must hold the same value.

    Raises:
        DempError: of the given kind, on all ranks; it names the ranks that differ from most others.
    """
    values = gathered(value, group)
    usual = Counter(map(repr, values)).most_common(1)[0][0]
    odd = [rank for rank, other in enumerate(values) if repr(other) != usual]
    if odd:
        found = "; ".join(f"rank {rank}: {values[rank]!r}" for rank in sorted({values_first(values, usual), *odd}))
        raise kind(f"{named(odd)} {what} than the other ranks ({found}); {remedy}")


def values_first(values: list[Any], usual: str) -> int:
    """The first rank that holds the usual value."""
    return next(rank for rank, value in enumerate(values) if repr(value) == usual)


def named(ranks: Any) -> str:
    """Rank 1; ranks 1 and 3."""
    numbers = [str(rank) for rank in ranks]
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(numbers[:-1])} and {numbers[-1]}"
