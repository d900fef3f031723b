"""``DistributedDataParallel`` around a model that is cut: the wrapper object stays, its reducer is made anew.

The reducer holds buckets in the old shapes, and hooks on autograd nodes that a shrunken parameter no longer has. What
DDP does when it is unpickled makes a new one from the parameters as they are; the object, its settings, the user's
hooks on it and ``no_sync`` stay as they were.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from demp.errors import UsageError
from demp.parallel import ranks
from demp.parallel.compiled import original
from demp.parallel.hooks import Hook

Wrappers = Sequence[DistributedDataParallel]


def user_module(model: nn.Module) -> nn.Module:
    """The user's module inside a ``DistributedDataParallel``, compiled or not; any other module itself."""
    model = original(model)
    return original(model.module) if isinstance(model, DistributedDataParallel) else model


def around(model: nn.Module) -> list[DistributedDataParallel]:
    """The wrappers that average gradients of this module's parameters, found among the objects that Python holds."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    model = original(model)
    if isinstance(model, DistributedDataParallel):
        return [model]
    mine = {id(p) for p in model.parameters()}
    wrappers = [
        o for o in gc.get_objects() if isinstance(type(o), type) and issubclass(type(o), DistributedDataParallel)
    ]
    return [w for w in wrappers if any(id(p) in mine for p in w.parameters())]


def group_of(wrappers: Wrappers) -> ranks.ProcessGroup:
    """The ranks that train this model together."""
    return ranks.unless_alone(wrappers[0].process_group) if wrappers else ranks.everyone()


def raise_if_unfit_wrappers(wrappers: Wrappers) -> None:
    """Settings whose memory of old shapes demp cannot renew.

    Raises:
        UsageError: a wrapper has one of them, or some ranks take fewer steps than others.
    """
    for wrapper in wrappers:
        for hook, state in getattr(wrapper, "_comm_hooks", ()):
            if state is not None and not isinstance(state, dist.ProcessGroup):
                name = getattr(hook, "__name__", type(hook).__name__)
                raise UsageError(
                    f"the communication hook {name} of DistributedDataParallel keeps a {type(state).__name__}, which "
                    "may remember gradients in old shapes; use one without state, such as bf16_compress_hook"
                )
        if getattr(wrapper, "mixed_precision", None) is not None:
            raise UsageError("DistributedDataParallel with mixed_precision keeps copies of the weights; use autocast")
        if getattr(wrapper, "_delay_all_reduce_params", None):
            raise UsageError(
                "DistributedDataParallel with delay_all_reduce_named_params keeps one flat gradient of the old size; "
                "leave that option out"
            )
        if wrapper._join_config.enable:
            raise UsageError(
                "inside DistributedDataParallel.join some ranks take fewer steps, so they cannot agree on a cut; give "
                "all ranks the same number of batches"
            )


@contextmanager
def renewed(wrappers: Wrappers) -> Iterator[None]:
    """Tensors may change shape inside; afterwards, cut or rolled back, the wrappers fit them."""
    try:
        yield
    finally:
        for wrapper in wrappers:
            renew(wrapper)


def renew(wrapper: Any) -> None:
    """A new reducer for the parameters as they are; the communication hooks are registered again."""
    hooks, wrapper._comm_hooks = list(wrapper._comm_hooks), []
    del wrapper.reducer, wrapper.logger  # first, because its hooks would stay on the parameters that kept their shape
    wrapper.__setstate__({"process_group": wrapper.process_group, "_static_graph_delay_allreduce_enqueued": False})
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
    if wrapper.static_graph:
        first_backward_averages(wrapper)


def first_backward_averages(wrapper: Any) -> None:
    """The next forward's backward averages gradients, inside ``no_sync`` as well: a static graph is recorded so.

    The numbers stay right: gradients that were averaged once are equal on all ranks, and average to themselves.
    """

    def average(module: Any, args: Any) -> None:
        if torch.is_grad_enabled():
            handle.remove()
            module.require_backward_grad_sync = True  # `no_sync` puts back what it found, when it ends

    handle = wrapper.register_forward_pre_hook(Hook(average))


def share_buffers(wrappers: Iterable[Any]) -> None:
    """Every rank takes rank 0's buffers now, as it would at the start of the next forward."""
    for wrapper in wrappers:
        if wrapper.broadcast_buffers and dist.get_world_size(wrapper.process_group) > 1:
            source = dist.get_global_rank(wrapper.process_group, 0)
            for name, buffer in wrapper.module.named_buffers():
                if name not in wrapper.parameters_to_ignore:
                    dist.broadcast(buffer, source, group=wrapper.process_group)
