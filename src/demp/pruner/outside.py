"""Readers that the traced forward does not run: a head that is called by another method (an auxiliary loss, say).

Nothing of such a call is in the graph, so that a cut would leave the head with the old width. Modules whose weight no
contraction of the graph uses, and norms that it does not know, are watched until they first run in training; the
neurons that they read then stay. Those that have not run by the first check are named.
"""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.detector import listed
from demp.activity.window import reads_its_input
from demp.graph import NeuronGraph
from demp.graph.forward import first_names
from demp.graph.scripted import followed_modules
from demp.parallel import Context, Hook

logger = logging.getLogger("demp")
CONTRACTIONS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Convolution", "Linear", "MkldnnConvolution")
"""Names of the autograd nodes of contractions."""
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
VIEWS = ("T", "Transpose", "Permute", "View", "UnsafeView", "Reshape", "Alias", "ToCopy", "Expand", "Unsqueeze")
"""Of nodes between a contraction and its weight."""


class OutsideReaders:
    """The watched modules of one model."""

    def __init__(self, model: nn.Module, graph: NeuronGraph) -> None:
        self._model, self._graph = model, graph
        self._stay: dict[str, Tensor] = {}
        """Module -> classes that it reads."""
        self._handles: dict[str, Any] = {}
        self._warned = False
        tensors = first_names(model)[0]
        used = {id(tensors[c.weight]) for c in graph.contractions if c.weight is not None}
        followed = {id(tensors[slot.tensor]) for slot in graph.slots} | used
        for name, module in followed_modules(model):
            own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
            norm = isinstance(module, NORMS) and own and not any(id(t) in followed for t in own)
            weight: Any = module._parameters.get("weight")
            if norm or (weight is not None and reads_its_input(module) and id(weight) not in used):
                hook = Hook(self._hook(name, module))
                self._handles[name] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def settle(self, context: Context) -> None:
        """Neurons that were found since the last time, on any rank, stay from now on."""
        found = [one for of_rank in context.gathered(self._stay) for one in of_rank.items()]
        self._stay = {}
        for name, classes in found:
            kept = self._graph.keep(classes)
            if kept and context.is_main_process:
                logger.warning(
                    "%s is not run by the forward that was traced, but reads %d neurons: they stay. Let the forward "
                    "of the example inputs run it, and they may go",
                    name,
                    kept,
                )

        if self._handles and not self._warned and context.is_main_process:
            self._warned = True
            logger.warning(
                "no forward has run %s so far, and what they would read may go: then they do not fit any more. Let the "
                "forward of the example inputs run them, or name what they read in exclude=",
                listed(list(self._handles)),
            )

    def close(self) -> None:
        """Remove all hooks from the watched modules."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str, own: nn.Module) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = args[0] if args else kwargs.get("input")
            if module is not own or not torch.is_grad_enabled() or not isinstance(value, Tensor):
                return  # a shallow copy has this hook, too
            self._stay[name] = read_classes(self._model, self._graph, value)
            self._handles.pop(name).remove()

        return look


def read_classes(model: nn.Module, graph: NeuronGraph, value: Tensor) -> Tensor:
    """The classes of all neurons that a tensor may carry: those that the nearest parameters behind it make.

    Where autograd knows nothing of it (``no_grad``, ``detach``), all that may go.
    """
    if value.grad_fn is None:
        return torch.cat([layer.classes for layer in graph.layers])
    near = nearest(value.grad_fn)
    names = {name for name, tensor in first_names(model)[0].items() if id(tensor) in near}
    made = {pair for layer in graph.layers for pair in layer.producers}
    slots = [s for s in graph.slots if s.tensor in names]
    found = [s.classes for s in slots if (s.tensor, s.axis) in made or len(graph.shapes[s.tensor]) == 1]
    return torch.cat(found).unique() if found else torch.empty(0, dtype=torch.long, device="cpu")


def nearest(node: Any) -> set[int]:
    """Ids of the leaves behind an autograd node that no contraction separates from it, and of their contractions."""
    found: set[int] = set()
    todo, seen = [node], set()
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        variable = getattr(one, "variable", None)
        if variable is not None:
            found.add(id(variable))
            continue
        children = [child for child, _ in one.next_functions]
        if is_of(one, CONTRACTIONS):
            children = [child for child in children if child is not None and ends_in_leaf(child)]
        todo.extend(children)
    return found


def ends_in_leaf(node: Any) -> bool:
    """Is it a leaf, or a view of one?"""
    while is_of(node, VIEWS) and len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None) is not None


def is_of(node: Any, kinds: Iterable[str]) -> bool:
    """Is it of one of these kinds of nodes?"""
    name = type(node).__name__.partition("Backward")[0]
    return any(name == kind for kind in kinds)
