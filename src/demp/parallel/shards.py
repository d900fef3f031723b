"""``fully_shard`` (FSDP2): parameters in pieces on several ranks; whole for a look, cut, and in pieces again.

The user's parameter objects stay: a new piece is swapped into the old object, so that optimizers, schedulers and hooks
keep what they hold. What ``fully_shard`` knows of a parameter's shape is computed anew by its own code, with the mesh,
the placement and all policies that it has. That code is private to torch: ``rehearse_renewal`` tries it before it is
needed.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from demp.errors import UsageError
from demp.parallel import ranks
from demp.parallel.pieces import is_sharded, local_piece, swap_in, whole_tensor


def states(model: nn.Module) -> list[Any]:
    """What ``fully_shard`` keeps for each of the modules that it was called on."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(module, "FSDPModule", None)
    modules: list[Any] = [m for m in model.modules() if kind is not None and isinstance(m, kind)]
    found = [m._get_fsdp_state() for m in modules]
    return list({id(state): state for state in found}.values())


def user_class(module: nn.Module) -> type:
    """The user's class: ``fully_shard`` gives a module a class of its own, derived from it."""
    line = type(module).__mro__
    mixed = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return line[line.index(mixed) + 1] if mixed in line else line[0]


def parts(model: nn.Module) -> list[Any]:
    """What ``fully_shard`` keeps for each parameter."""
    groups = []
    for state in states(model):
        several = getattr(state, "_fsdp_param_groups", None)
        groups += [state._fsdp_param_group] if several is None else several
    return [part for group in groups if group is not None for part in group.fsdp_params]


def is_sharded_model(model: nn.Module) -> bool:
    """Does ``fully_shard`` keep parameters of this model in pieces?"""
    return bool(parts(model))


def group_of(model: nn.Module) -> ranks.ProcessGroup:
    """The ranks among which the model is sharded."""
    mesh = parts(model)[0].mesh_info.mesh
    return ranks.unless_alone(mesh.get_group()) if mesh.ndim == 1 else ranks.everyone()


def autograd_leaves(model: nn.Module) -> list[nn.Parameter]:
    """The parameters from which autograd graphs of this model hang: the pieces, and the whole ones of its forwards."""
    wholes = [vars(part)["_unsharded_param"] for part in parts(model) if "_unsharded_param" in vars(part)]
    return [*model.parameters(), *wholes]


def accumulates(model: nn.Module) -> bool:
    """Do gradients wait on this rank to be averaged later (``set_requires_gradient_sync(False)``)?"""
    wholes = [vars(part).get("_unsharded_param") for part in parts(model)]
    held = [part.unsharded_accumulated_grad for part in parts(model)] + [w.grad for w in wholes if w is not None]
    return any(gradient is not None for gradient in held)


def raise_if_unfit_sharding(model: nn.Module) -> None:
    """Ways of sharding that demp cannot renew after a cut.

    Raises:
        UsageError: the model is sharded in one of them.
    """
    mine = parts(model)
    known = {id(part.sharded_param) for part in mine}
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) and id(parameter) not in known:
            raise UsageError(f"{name} is split by tensor parallelism, which demp cannot cut; use fully_shard alone")
    for part in mine:
        why = unfit(part)
        if why:
            raise UsageError(f"fully_shard {why}, which demp cannot cut; leave that out, or prune before sharding")
    if any(len(state._modules) > 1 for state in states(model)):
        raise UsageError("fully_shard was called on a list of modules, which demp cannot cut; call it on each one")
    if any(part.mesh_info.mesh != mine[0].mesh_info.mesh for part in mine):
        raise UsageError("the parts of this model are sharded over different meshes; shard all of them over one")
    if mine and mine[0].mesh_info.mesh.ndim > 1 and mine[0].mesh_info.mesh.size() != dist.get_world_size():
        raise UsageError("the mesh of fully_shard has two dimensions but not all ranks; use a mesh of all ranks")


def unfit(part: Any) -> str:
    """What is special about a sharded parameter, if it is."""
    if part.offload_to_cpu:
        return "keeps parameters on the CPU (CPUOffloadPolicy)"
    if part.is_dtensor:
        return "holds parameters that tensor parallelism has split before"
    if part.sharded_param.is_meta:
        return "holds parameters on the meta device"
    if not all(p.is_replicate() or p.is_shard(0) for p in part.sharded_param.placements):
        return "splits a parameter along another axis than 0"
    if hasattr(local_piece(part.sharded_param), "fsdp_pre_all_gather"):
        return f"gathers a {type(local_piece(part.sharded_param)).__name__} in its own way"
    return ""


def reshard(model: nn.Module) -> None:
    """Leave no module with the whole parameters of its last forward."""
    for state in states(model):
        state._modules[0].reshard()


@contextmanager
def whole_parameters(*models: nn.Module) -> Iterator[None]:
    """Inside, every sharded parameter of these models is a plain one on every rank, and their forwards gather nothing.

    All ranks must enter; inside, none waits for another.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(whole_parameters_of(model))
        yield


@contextmanager
def whole_parameters_of(model: nn.Module) -> Iterator[None]:
    """The same for one model."""
    if not any(is_sharded(p) for p in model.parameters()) and not states(model):
        yield
        return
    reshard(model)
    places = [(m, n, p) for m in model.modules() for n, p in m._parameters.items() if is_sharded(p)]
    if not places:
        yield
        return
    wholes: dict[int, nn.Parameter] = {}
    for _, _, piece in places:
        if id(piece) not in wholes:
            wholes[id(piece)] = nn.Parameter(whole_tensor(piece.detach()), piece.requires_grad)  # type: ignore[union-attr]
    with ExitStack() as stack:
        for state in states(model):
            for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
                stack.enter_context(resting(handle))
        for module, name, piece in places:
            module._parameters[name] = wholes[id(piece)]
        try:
            yield
        finally:
            for module, name, piece in places:
                module._parameters[name] = piece


@contextmanager
def resting(handle: Any) -> Iterator[None]:
    """A registered hook does not run inside; it comes back to its place among the others."""
    hooks = handle.hooks_dict_ref()
    before = hooks.copy()
    hooks.pop(handle.id, None)
    try:
        yield
    finally:
        fresh = {key: hook for key, hook in hooks.items() if key not in before}
        hooks.clear()
        hooks.update(before | fresh)


# After a cut --------------------------------------------------------------------------------------------


def outdated(model: nn.Module) -> list[Any]:
    """What ``fully_shard`` keeps for each parameter whose shape is another now."""
    return [part for part in parts(model) if part.sharded_param.shape != part._orig_size]


def renew_shards(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Let ``fully_shard`` know the new shapes, one parameter after the other; before each, what takes it back."""
    for part in outdated(model):
        yield partial(revert, part, vars(part).copy())
        fit(part)


def revert(part: Any, before: dict[str, Any]) -> None:
    """What ``fully_shard`` knew of a parameter before."""
    vars(part).clear()
    vars(part).update(before)
    part._setattr_on_modules(part.sharded_param)


@torch.no_grad()
def fit(part: Any) -> None:
    """Let ``fully_shard`` take a parameter as it is now; the piece moves into memory that it has padded."""
    piece = part.sharded_param
    value, gradient, placement = local_piece(piece).clone(), piece.grad, part.fsdp_placement
    stand_in = nn.Parameter(torch.empty(piece.shape, dtype=piece.dtype, device=part.device), piece.requires_grad)
    offered = {
        "param": stand_in,
        "device": part.device,
        "shard_placement_fn": lambda parameter: placement,
        "mesh_info": part.mesh_info,
    }
    wanted = inspect.signature(part._init_sharded_param).parameters
    part._init_sharded_param(**{name: offered[name] for name in wanted})
    if part.post_forward_mesh_info:
        part._init_sharded_post_forward_param_metadata(stand_in)
    local_piece(part.sharded_param).copy_(value)
    piece.grad = None
    swap_in(piece, part.sharded_param.detach())
    piece.grad = gradient
    part.sharded_param = piece
    part._setattr_on_modules(piece)
    part.all_gather_outputs = []
    vars(part).pop("_unsharded_param", None)


def rehearse_renewal(model: nn.Module) -> None:
    """Renew one parameter as it is, so that a torch whose ``fully_shard`` works otherwise is noticed at once.

    Raises:
        UsageError: it works otherwise.
    """
    for part in parts(model)[:1]:
        before = vars(part).copy()
        try:
            fit(part)
        except Exception as error:  # private code of another torch may fail in any way
            revert(part, before)
            raise UsageError(
                f"fully_shard of torch {torch.__version__} works in a way that demp does not know ({error}); prune "
                "before sharding, or use another version of torch"
            ) from error
