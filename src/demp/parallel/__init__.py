"""Who trains the model, and what that does to its tensors and modules. Other packages import from here alone.

This is the `Context`, the one value that is passed around, found by `context_of`; `everyone` is that of all
processes, `ALONE` that of one. `ElsewhereError` says that another rank failed.

One tensor, in pieces on several ranks or not: `is_sharded`, `local_piece`, `whole_tensor`, `sharded_like`, `swap_in`;
`nonzero_along` looks at several at once.

One module, as the user wrote it: `user_module` inside its wrappers, `user_class` behind that of ``fully_shard``,
`original` inside ``torch.compile``. `Hook` stays with one module and is not copied.

A model that ``fully_shard`` keeps in pieces: `is_sharded_model`, `whole_parameters`, `reshard`, `autograd_leaves`,
`accumulates`; before a cut `raise_if_unfit_sharding` and `rehearse_renewal`, after it `renew_shards`.

Compiled code: `eager`, `uncompiled`, `raise_if_compiled`, `forget_compiled_code`, `Stopwatch`.

Inside, `ranks` is what processes tell each other, `wrappers` is DistributedDataParallel, `pieces` and `shards` are
``fully_shard``, `compiled` is ``torch.compile``.
"""

from demp.parallel.compiled import Stopwatch, eager, forget_compiled_code, original, raise_if_compiled, uncompiled
from demp.parallel.context import ALONE, Context, context_of, everyone
from demp.parallel.hooks import Hook
from demp.parallel.pieces import is_sharded, local_piece, nonzero_along, sharded_like, swap_in, whole_tensor
from demp.parallel.ranks import ElsewhereError
from demp.parallel.shards import (
    accumulates,
    autograd_leaves,
    is_sharded_model,
    raise_if_unfit_sharding,
    rehearse_renewal,
    renew_shards,
    reshard,
    user_class,
    whole_parameters,
)
from demp.parallel.wrappers import user_module

__all__ = [
    "ALONE",
    "Context",
    "ElsewhereError",
    "Hook",
    "Stopwatch",
    "accumulates",
    "autograd_leaves",
    "context_of",
    "eager",
    "everyone",
    "forget_compiled_code",
    "is_sharded",
    "is_sharded_model",
    "local_piece",
    "nonzero_along",
    "original",
    "raise_if_compiled",
    "raise_if_unfit_sharding",
    "rehearse_renewal",
    "renew_shards",
    "reshard",
    "sharded_like",
    "swap_in",
    "uncompiled",
    "user_class",
    "user_module",
    "whole_parameters",
    "whole_tensor",
]
