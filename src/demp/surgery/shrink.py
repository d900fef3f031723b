"""Shrink tensors in place, and remember how to undo it."""

from collections.abc import Iterable, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from demp.graph import GraphState
from demp.graph.attributes import shown_sizes
from demp.graph.call_plans import plan_calls
from demp.graph.calls import CallPlan, calls_of
from demp.graph.joins import joins_of, set_calls, set_joins
from demp.graph.order import is_whole
from demp.graph.sums import JoinPlan
from demp.parallel import forget_compiled_code, is_sharded, renew_shards, sharded_like, swap_in, whole_tensor
from demp.surgery.live import LiveModel

Keeps = dict[str, dict[int, Tensor]]
"""Tensor name -> axis -> for each index that will be there, where it is now; -1 where none is: it returns."""


def keeps_of(before: GraphState, after: GraphState) -> Keeps:
    """Where what is there ``after`` lies ``before``, of every tensor that changes its width or its order."""
    keeps: Keeps = {}
    for slot in before.graph.slots:
        keep = after.index_into(before, slot.classes)
        if not is_whole(keep, len(before.kept(slot.classes))):
            keeps.setdefault(slot.tensor, {})[slot.axis] = keep
    return keeps


def narrowed(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """A copy with only the kept indices, in the memory format of the original, and on its mesh if it is sharded."""
    if is_sharded(tensor):
        return sharded_like(narrowed(whole_tensor(tensor), keep), tensor)
    out = tensor
    for axis, indices in keep.items():
        out = out.index_select(axis, indices.to(tensor.device))
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == dims and laid_out(tensor, memory_format):
            kept = torch.empty(out.shape, dtype=out.dtype, device=out.device, memory_format=memory_format)
            return kept.copy_(out)
    return out


def laid_out(tensor: Tensor, memory_format: torch.memory_format) -> bool:
    """Is this the memory format of the tensor? Axes of length 1 fit several; the strides tell."""
    like = torch.empty(tensor.shape, device="meta", memory_format=memory_format)
    ambiguous = tensor.is_contiguous()
    return tensor.stride() == like.stride() if ambiguous else tensor.is_contiguous(memory_format=memory_format)


class UndoLog:
    """Applies changes and can take all of them back. ``keep_undo=False`` frees old memory at once."""

    def __init__(self, keep_undo: bool = True) -> None:
        self._keep_undo = keep_undo
        self._undo: list[Any] = []

    @torch.no_grad()
    def shrink(self, tensor: Tensor, keep: Mapping[int, Tensor]) -> None:
        """Shrink a parameter, buffer or plain tensor, and its gradient, keeping the object."""
        grad, old = tensor.grad, tensor.detach()
        small = narrowed(old, keep)
        small_grad = None if grad is None else narrowed(grad, keep)
        if self._keep_undo:
            self._undo.append(partial(restore, tensor, old, grad))
        restore(tensor, small, small_grad)

    @torch.no_grad()
    def put(self, tensor: Tensor, value: Tensor) -> None:
        """Give a parameter, buffer or plain tensor other contents, of any widths, keeping the object."""
        if self._keep_undo:
            self._undo.append(partial(restore, tensor, tensor.detach(), tensor.grad))
        restore(tensor, value, None)

    def entry(self, place: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of an optimizer's state."""
        if self._keep_undo:
            self._undo.append(partial(place.__setitem__, key, place[key]))
        place[key] = value

    def attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module, so that it can be undone."""
        old = getattr(module, name)
        if old != value:
            if self._keep_undo:
                self._undo.append(partial(setattr, module, name, old))
            setattr(module, name, value)

    def joins(self, module: nn.Module, plans: Mapping[int, JoinPlan]) -> None:
        """Plan the residual sums of a module."""
        if self._keep_undo:
            self._undo.append(partial(set_joins, module, joins_of(module)))
        set_joins(module, plans)

    def calls(self, module: nn.Module, plans: Mapping[str, CallPlan]) -> None:
        """Plan the calls of a module that depend on the number of neurons."""
        if self._keep_undo:
            self._undo.append(partial(set_calls, module, calls_of(module)))
        set_calls(module, plans)

    @torch.no_grad()
    def add(self, tensor: Tensor, values: Tensor) -> None:
        """Add to a tensor in place."""
        if self._keep_undo:
            self._undo.append(partial(overwrite, tensor, tensor.detach().clone()))
        tensor.add_(sharded_like(values.to(tensor.dtype), tensor))

    def renew(self, model: nn.Module) -> None:
        """Let ``fully_shard`` know the new shapes."""
        for undo in renew_shards(model):
            if self._keep_undo:
                self._undo.append(undo)

    def roll_back(self) -> None:
        """Take back everything, last change first."""
        while self._undo:
            self._undo.pop()()


@torch.no_grad()
def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Put values into a tensor in place: what an undo does."""
    tensor.copy_(value)


@torch.no_grad()
def restore(tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
    """Give a tensor object other contents and another gradient."""
    tensor.grad = None
    if is_sharded(tensor):
        swap_in(tensor, value)
    else:
        tensor.set_(value)  # type: ignore[arg-type]
    tensor.grad = grad


def follow(live: LiveModel, after: GraphState, keeps: Iterable[str], undo_log: UndoLog) -> None:
    """Fit to a state whatever depends on widths beside the tensors themselves.

    Residual sums, planned calls, sizes that modules remember, ``fully_shard``, compiled code. ``keeps``: names of the
    tensors that changed.
    """
    undo_log.renew(live.model)
    sums, calls = after.residual_adds, plan_calls(after)
    for module in live.modules:
        resize_attributes(module, keeps, after, undo_log)
        for path, planned in sums.items():
            undo_log.joins(module.get_submodule(path), planned)
        for path, replanned in calls.items():  # what this forward did not reach keeps the plans of earlier cuts
            undo_log.calls(module.get_submodule(path), replanned)
    torch.clear_autocast_cache()
    forget_compiled_code()


def resize_attributes(model: nn.Module, keeps: Iterable[str], after: GraphState, undo_log: UndoLog) -> None:
    """Sizes that modules remember: what forwards read (``graph.attributes``), and what ``repr`` shows."""
    for (path, attribute), classes in after.graph.attributes.items():
        module = model.get_submodule(path)
        if hasattr(module, attribute):
            undo_log.attribute(module, attribute, len(after.kept(classes)))
    for name in keeps:
        module = model.get_submodule(name.rpartition(".")[0])
        for attribute, value in shown_sizes(module).items():
            undo_log.attribute(module, attribute, value)
