"""Moments at which a model must not be cut."""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import CutError

DEVICE_TYPES = ("cpu", "cuda")


def refuse_open_autocast() -> None:
    """An open autocast region holds casts of the uncut weights."""
    if any(torch.is_autocast_enabled(device) for device in DEVICE_TYPES):
        raise CutError("a cut inside an autocast region would meet cached casts of the old weights; cut outside it")


def refuse_pending_gradients(model: nn.Module) -> None:
    """Gradients that no step has used belong to an open accumulation window."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and bool(parameter.grad.count_nonzero()):
            raise CutError(
                f"{name} holds a gradient: the model is inside an accumulation window or between backward and step. "
                "Cut after optimizer.step() and optimizer.zero_grad()"
            )


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
    saved tensors are freed (backward has run) or outdated (an optimizer has stepped) do not count.
    """
    wanted = {id(p) for p in parameters}
    seen: set[Any] = set()
    todo = [o.grad_fn for o in gc.get_objects() if issubclass(type(o), Tensor) and o.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        children = [child for child, _ in node.next_functions if child is not None]
        if any(id(getattr(child, "variable", None)) in wanted for child in children) and holds_tensors(node):
            return True
        todo.extend(children)
    return False


def holds_tensors(node: Any) -> bool:
    """Does an autograd node hold saved tensors that a backward could still use?"""
    for name in dir(type(node)):
        if name.startswith("_saved_"):
            try:
                value = getattr(node, name)
            except RuntimeError:  # freed by a backward, or changed in place by a step
                return False
            if isinstance(value, Tensor):
                return True
    return False
