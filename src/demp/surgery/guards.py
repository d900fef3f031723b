"""Moments at which a model must not be cut, and models that are not what they were."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from demp import shards
from demp.errors import CutError
from demp.graph.joins import plain_kind

DEVICE_TYPES = ("cpu", "cuda")


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Inside, no autocast region is open; after, those are open that were.

    A region keeps casts of weights. They are of the weights as they were before the step and before the cut, so who
    cuts drops them (``torch.clear_autocast_cache``), and the region makes new ones when they are needed.
    """
    with ExitStack() as stack:
        for device in DEVICE_TYPES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def refuse_pending_gradients(model: nn.Module) -> None:
    """Gradients that no step has used belong to an open accumulation window."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not is_zero(parameter.grad):
            raise CutError(
                f"{name} holds a gradient: the model is inside an accumulation window or between backward and step. "
                "Cut after optimizer.step() and optimizer.zero_grad()"
            )


Parts = dict[str, tuple[Callable[[], Any], type]]
"""Name of a module or parameter -> which object it is, and of what class."""


def parts_of(model: nn.Module) -> Parts:
    """Every module and parameter under each of its names. A join changes no part.

    Nothing is kept alive but pieces of parameters: torch swaps no tensor that is weakly referenced.
    """
    named = [*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
    return {name: (held(part), plain_kind(type(part)) or type(part)) for name, part in named}


def held(part: Any) -> Callable[[], Any]:
    """How to reach a module or parameter later."""
    return (lambda: part) if shards.is_sharded(part) else weakref.ref(part)


def refuse_replaced_parts(model: nn.Module, parts: Parts) -> None:
    """The model must still consist of the objects that were traced, whatever their shapes.

    Optimizers, hooks, penalties and averages hold the old ones.
    """
    now = parts_of(model)
    for name in (*parts, *now):
        if name not in now:
            what = f"{name} was taken away"
        elif name not in parts:
            what = f"{name} was added"
        elif parts[name][0]() is not now[name][0]():
            what = f"{name} is another object"
        elif parts[name][1] is not now[name][1]:
            what = f"{name or 'the model'} became a {now[name][1].__name__}"
        else:
            continue
        raise CutError(
            f"{what} since the model was traced, so that what holds the old parts (optimizers, hooks, penalties) "
            "went stale; change a model before its pruner is built, or build a new one. Nothing was cut"
        )


def refuse_unshrinkable(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Tensors that cannot take another size in place would stop a cut half-way."""
    for name in names:
        tensor = tensors.get(name)
        if tensor is not None and (tensor.is_inference() or tensor.layout != torch.strided):
            kind = "made in inference mode" if tensor.is_inference() else f"of layout {tensor.layout}"
            raise CutError(
                f"{name} is a tensor {kind} and cannot shrink in place; give the model and its holders ordinary "
                "tensors (clone them). Nothing was cut"
            )


def is_zero(gradient: Tensor) -> bool:
    """Does a gradient, dense or sparse, hold nothing but zeros?"""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return not bool(values.count_nonzero())


def refuse_pending_backward(model: nn.Module) -> None:
    """A forward whose backward is still to come needs the uncut weights."""
    if pending_backward(model.parameters()):
        raise CutError(
            "a forward of this model is still waiting for its backward; cut after backward() and optimizer.step(), "
            "or drop the tensors that hold the graph"
        )


def pending_backward(parameters: Iterable[nn.Parameter]) -> bool:
    """Is there a live, unused autograd graph over these parameters?

    Every backward starts from a tensor that Python holds, so the tensors that Python holds are searched. Graphs whose
    saved tensors are freed (backward has run) or outdated (an optimizer has stepped) do not count. The search takes
    several steps of a small network; it is spared where no graph is alive, as in a loop whose loss has left its scope.
    """
    found = list(parameters)
    if all(map(is_held_once, found)):
        return False
    wanted = {id(p) for p in found}
    seen: set[Any] = set()
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Tensor)}
    todo = [o.grad_fn for o in objects if type(o) in kinds and o.grad_fn is not None]
    del objects
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if holds_tensors(node) and uses(node, wanted):
            return True
        todo.extend(children(node))
    return False


def is_held_once(parameter: Tensor) -> bool:
    """Does nothing but its Python object hold this parameter? Every graph over it does, whether it saves it or not."""
    count = getattr(parameter, "_use_count", None)  # private to torch: without it, the search decides
    return type(parameter) is nn.Parameter and count is not None and count() == 1


def children(node: Any) -> list[Any]:
    """The autograd nodes whose outputs a node consumed."""
    return [child for child, _ in node.next_functions if child is not None]


def uses(node: Any, wanted: set[int]) -> bool:
    """Does a node consume a wanted leaf, directly or through nodes that save nothing (a transposed weight)?"""
    todo, seen = children(node), set()
    while todo:
        child = todo.pop()
        if id(getattr(child, "variable", None)) in wanted:
            return True
        if child not in seen and not saved(type(child)):
            todo.extend(children(child))
        seen.add(child)
    return False


@cache
def saved(kind: type) -> tuple[str, ...]:
    """Names under which autograd nodes of one kind save tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def holds_tensors(node: Any) -> bool:
    """Does an autograd node hold saved tensors that a backward could still use?"""
    held = False
    for name in saved(type(node)):
        try:
            packed = as_tuple(getattr(node, name))
            if any(getattr(one, "unpack_hook", None) is not None for one in packed):
                held = True  # not looked at: to unpack it may mean to run the forward again (checkpointing)
            else:
                whole = "saved_tensors" if name == "_raw_saved_tensors" else name.removeprefix("_raw")
                held |= any(isinstance(value, Tensor) for value in as_tuple(getattr(node, whole)))
        except RuntimeError:  # freed by a backward, or changed in place by a step
            return False
    return held


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One or several as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
