"""Who trains one model, as one value that is passed around in place of a process group and a list of wrappers."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from demp.errors import CutError, DempError
from demp.parallel import compiled, ranks, shards, wrappers
from demp.parallel.ranks import ProcessGroup
from demp.parallel.wrappers import Wrappers


@dataclass(frozen=True)
class Context:
    """Who trains one model: this process alone, or several ranks together.

    What several ranks are asked together is asked by all of them, in the same order, or by none. A process that is
    alone answers for itself, and waits for no other.
    """

    group: ProcessGroup = None
    """The ranks that train it together; None: this process is alone."""
    wrappers: Wrappers = ()
    """Every ``DistributedDataParallel`` around it."""
    sharded: bool = False
    """Does ``fully_shard`` keep its parameters in pieces?"""
    compiled: bool = False
    """Is the model, or a part of it, compiled?"""

    @property
    def alone(self) -> bool:
        """Does no other process train this model?"""
        return self.group is None

    @property
    def rank(self) -> int:
        """This process's number among those that train the model, from 0."""
        return ranks.place(self.group)[0]

    @property
    def world_size(self) -> int:
        """How many processes train the model."""
        return ranks.place(self.group)[1]

    @property
    def is_main_process(self) -> bool:
        """Is this the process that logs and writes?"""
        return ranks.is_main_process(self.group)

    def gathered(self, value: Any) -> list[Any]:
        """A small plain value of every rank, in the order of the ranks."""
        return ranks.gathered(value, self.group)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum over ranks of each number."""
        return ranks.total(values, self.group)

    def highest(self, values: Sequence[float | None]) -> list[float | None]:
        """The largest over ranks of each number; None where no rank has one."""
        return ranks.highest(values, self.group)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks, equal to the bit on all of them."""
        return ranks.mean(values, self.group)

    def common(self, flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Flags that are set on every rank."""
        return ranks.common(flags, self.group)

    def any_of(self, flag: bool) -> bool:
        """Is it so on any rank?"""
        return ranks.any_of(flag, self.group)

    def together(self) -> AbstractContextManager[None]:
        """What happens inside succeeds on all ranks, or fails on all of them: see `ranks.together`.

        Raises:
            ElsewhereError: it failed on another rank.
        """
        return ranks.together(self.group)

    def where(self, numbers: Iterable[int]) -> str:
        """``" on rank 1"``, ``" on ranks 1 and 3"``; empty where this process is alone."""
        return "" if self.alone else f" on {ranks.named(numbers)}"

    def raise_if_disagreement(self, what: str, value: Any, *, remedy: str, kind: type[DempError] = CutError) -> None:
        """All ranks must hold the same value; ``what`` says of those that do not what they do, and ``remedy`` helps.

        Raises:
            DempError: of the given kind, on all ranks.
        """
        ranks.raise_if_disagreement(what, value, self.group, remedy=remedy, kind=kind)

    def whole(self, *models: nn.Module) -> AbstractContextManager[None]:
        """Inside, no parameter of the model, or of copies of it, is in pieces: see `shards.whole_parameters`."""
        return shards.whole_parameters(*models)

    def renewed(self) -> AbstractContextManager[None]:
        """Tensors may change shape inside; afterwards the wrappers fit them: see `wrappers.renewed`."""
        return wrappers.renewed(self.wrappers)

    def share_buffers(self) -> None:
        """Every rank takes the main process's buffers now, as it would at the start of the wrapped model's forward."""
        wrappers.share_buffers(self.wrappers)

    def raise_if_unfit_wrappers(self) -> None:
        """Wrappers must remember no old shapes but those that demp renews.

        Raises:
            UsageError: a setting of one of them does.
        """
        wrappers.raise_if_unfit_wrappers(self.wrappers)


ALONE = Context()
"""This process trains a model by itself."""


def context_of(model: nn.Module) -> Context:
    """Who trains a model now; it may be wrapped, compiled, sharded, or none of these."""
    around, inner = tuple(wrappers.around(model)), wrappers.user_module(model)
    sharded = shards.is_sharded_model(inner)
    group = shards.group_of(inner) if sharded else wrappers.group_of(around)
    return Context(group, around, sharded, compiled.is_compiled(model))


def everyone() -> Context:
    """All processes that were started together, whatever model each of them trains."""
    return Context(ranks.everyone())
