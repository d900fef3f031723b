"""Moments at which a model must not be cut, and models that are not what they were."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import CutError
from demp.graph.joins import plain_kind
from demp.parallel import is_sharded

DEVICE_TYPES = ("cpu", "cuda")


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Inside, no autocast region and no inference mode is open; after, those are open that were.

    A region keeps casts of weights. They are of the weights as they were before the step and before the cut, so who
    cuts drops them (``torch.clear_autocast_cache``), and the region makes new ones when they are needed.
    """
    casting = [device for device in DEVICE_TYPES if torch.is_autocast_enabled(device)]
    if not casting and not torch.is_inference_mode_enabled():
        yield  # at nearly every step, where entering regions would take longer than the rest of the hook
        return
    with torch.inference_mode(False), ExitStack() as stack:
        for device in casting:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def raise_if_pending_gradients(model: nn.Module) -> None:
    """Gradients that no step has used belong to an open accumulation window.

    Raises:
        CutError: a parameter holds a gradient that is not zero.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not is_zero(parameter.grad):
            raise CutError(
                f"{name} holds a gradient: the model is inside an accumulation window or between backward and step. "
                "Cut after optimizer.step() and optimizer.zero_grad()"
            )


Parts = dict[str, tuple[Callable[[], Any], type]]
"""Name of a module or parameter -> which object it is, and of what class."""


def parts_of(model: nn.Module) -> Parts:
    """Every module and parameter under each of its names. A planned sum changes no part.

    Nothing is kept alive but pieces of parameters: torch swaps no tensor that is weakly referenced.
    """
    named = [*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
    return {name: (held(part), plain_kind(type(part)) or type(part)) for name, part in named}


def held(part: Any) -> Callable[[], Any]:
    """How to reach a module or parameter later."""
    return (lambda: part) if is_sharded(part) else weakref.ref(part)


def raise_if_replaced_parts(model: nn.Module, parts: Parts) -> None:
    """The model must still consist of the objects that were traced, whatever their shapes.

    Optimizers, hooks, penalties and averages hold the old ones.

    Raises:
        CutError: a module or parameter was added, taken away or replaced.
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


def raise_if_unshrinkable(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Tensors that cannot take another size in place would stop a cut half-way.

    Raises:
        CutError: one of those named cannot.
    """
    for name in names:
        tensor = tensors.get(name)
        if tensor is not None and (tensor.is_inference() or tensor.layout != torch.strided):
            kind = "made in inference mode" if tensor.is_inference() else f"of layout {tensor.layout}"
            raise CutError(
                f"{name} is a tensor {kind} and cannot shrink in place; give the model and its copies ordinary "
                "tensors (clone them). Nothing was cut"
            )


def is_zero(gradient: Tensor) -> bool:
    """Does a gradient, dense or sparse, hold nothing but zeros?"""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return not bool(values.count_nonzero())


def raise_if_pending_backward(model: nn.Module) -> None:
    """A forward whose backward is still to come needs the uncut weights.

    Raises:
        CutError: there is such a forward; the message is what holds it.
    """
    held = held_forward(model.named_parameters())
    if held:
        raise CutError(
            f"a forward of this model is still waiting for its backward ({held}); cut after backward() and "
            "optimizer.step(), or drop the tensors that hold the graph"
        )


def pending_backward(parameters: Iterable[nn.Parameter]) -> bool:
    """Is there a live, unused autograd graph over these parameters?"""
    return bool(held_forward(("a parameter", p) for p in parameters))


def held_forward(named: Iterable[tuple[str, nn.Parameter]]) -> str:
    """What holds a live, unused autograd graph over these parameters, in words; empty if nothing does.

    Every backward starts from a tensor that Python holds, so the tensors that Python holds are searched. A tensor does
    not count if somewhere behind it saved tensors are freed (backward has run) or outdated (an optimizer has stepped a
    saved weight): torch would refuse its backward. The search takes several steps of a small network; it is spared
    where no graph is alive, as in a loop whose loss has left its scope.
    """
    found = list(named)
    if all(is_held_once(parameter) for _, parameter in found):
        return ""
    wanted = {id(parameter): name for name, parameter in found}
    ends = held_ends()
    waiting, spent, consumers = looked_through(ends, wanted)
    if not waiting:
        return ""
    stale = reached(spent, lambda node: consumers.get(node, ()))
    for end in ends:
        if end not in stale:
            for node in reached([end], children):
                if node in waiting:
                    return f"a tensor made by {end.name()}, computed with {waiting[node]}"
    return ""


def held_ends() -> list[Any]:
    """The autograd nodes that made the tensors which Python holds.

    A tensor that only a graph has saved has a Python object, too, to which torch itself holds the one reference.
    """
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Tensor)}
    tensors = [o for o in objects if type(o) in kinds and o.grad_fn is not None]
    del objects
    alone = [Tensor()]
    unheld = sys.getrefcount(alone[0])
    found = []
    for at in range(len(tensors)):
        by_torch = uses_in_torch(tensors[at]) > 1
        if sys.getrefcount(tensors[at]) > unheld + by_torch:
            found.append(tensors[at].grad_fn)
    return found


def looked_through(
    ends: Iterable[Any], wanted: Mapping[int, str]
) -> tuple[dict[Any, str], list[Any], dict[Any, list[Any]]]:
    """What the autograd nodes behind ``ends`` hold.

    Those that hold tensors and use a wanted leaf, with its name; those whose tensors are freed or outdated; and of each
    node the nodes that consumed its output.
    """
    waiting: dict[Any, str] = {}
    spent: list[Any] = []
    consumers: dict[Any, list[Any]] = {}
    seen: set[Any] = set()
    todo = list(ends)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        held = holds_tensors(node)
        if held is None:
            spent.append(node)
        elif held and (name := uses(node, wanted)) is not None:
            waiting[node] = name
        for child in children(node):
            consumers.setdefault(child, []).append(node)
            todo.append(child)
    return waiting, spent, consumers


def reached(starts: Iterable[Any], following: Callable[[Any], Iterable[Any]]) -> set[Any]:
    """All nodes that can be reached, the first ones included."""
    seen: set[Any] = set()
    todo = list(starts)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(following(node))
    return seen


def is_held_once(parameter: Tensor) -> bool:
    """Does nothing but its Python object hold this parameter? Every graph over it does, whether it saves it or not."""
    return type(parameter) is nn.Parameter and uses_in_torch(parameter) == 1


def uses_in_torch(tensor: Tensor) -> int:
    """How many in torch's own code hold a tensor, its Python object included; 0 if this torch does not say."""
    count = getattr(tensor, "_use_count", None)  # private to torch
    return 0 if count is None else count()


def children(node: Any) -> list[Any]:
    """The autograd nodes whose outputs a node consumed."""
    return [child for child, _ in node.next_functions if child is not None]


def uses(node: Any, wanted: Mapping[int, str]) -> str | None:
    """Name of a wanted leaf that a node consumes, directly or through nodes that save nothing (a transposed weight)."""
    todo, seen = children(node), set()
    while todo:
        child = todo.pop()
        name = wanted.get(id(getattr(child, "variable", None)))
        if name is not None:
            return name
        if child not in seen and not saved(type(child)):
            todo.extend(children(child))
        seen.add(child)
    return None


@cache
def saved(kind: type) -> tuple[str, ...]:
    """Names under which autograd nodes of one kind save tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def holds_tensors(node: Any) -> bool | None:
    """Does an autograd node hold saved tensors that a backward could still use? None: they are freed or outdated."""
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
            return None
    return held


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One or several as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
