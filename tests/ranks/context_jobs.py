"""What the ranks of the tests tell each other through the context of a model."""

from typing import Any

import torch
from loops import net, ready, refused
from torch.distributed.fsdp import fully_shard

from demp.errors import UsageError
from demp.parallel import ElsewhereError, context_of, everyone, is_sharded


def told() -> dict[str, Any]:
    """What each rank hears of what all of them say."""
    model, wrapped, _ = ready()
    context = context_of(wrapped)
    flags = {"layer": torch.tensor([True, context.is_main_process])}
    return {
        "same": context.group == everyone().group == context_of(model).group,
        "wrappers": [one is wrapped for one in context_of(model).wrappers],
        "rank": (context.rank, context.world_size, context.is_main_process, context.alone),
        "kind": (context.sharded, context.compiled),
        "gathered": context.gathered(context.rank),
        "total": context.total([1, context.rank]),
        "highest": context.highest([context.rank, None]),
        "mean": context.mean(torch.tensor([2.0 * context.rank])).item(),
        "any": context.any_of(context.rank == 1),
        "common": context.common(flags)["layer"].tolist(),
        "where": context.where([1]),
    }


def failed_elsewhere() -> str:
    """Rank 1 fails inside."""
    context = everyone()
    try:
        with context.together():
            if context.rank == 1:
                raise UsageError("no batches")
    except (ElsewhereError, UsageError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def disagreed() -> tuple[str, str]:
    """The ranks hold different seeds."""
    context = everyone()
    return refused(
        lambda: context.raise_if_disagreement("has another seed", context.rank, remedy="give one", kind=UsageError)
    )


def unwrapped() -> tuple[bool, int]:
    """A model without a wrapper is trained by all ranks, too."""
    context = context_of(net())
    return context.alone, len(context.wrappers)


def in_pieces() -> tuple[bool, int, int]:
    """A sharded model; inside ``whole`` its parameters are plain ones."""
    model = net()
    fully_shard(model)
    context = context_of(model)
    with context.whole(model):
        plain = [not is_sharded(p) for p in (model.fc1.weight, model.fc2.weight)]
    return context.sharded, context.world_size, sum(plain)
