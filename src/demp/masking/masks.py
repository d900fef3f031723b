"""Masks on single weights: which entries of which parameters are held at zero.

A mask saves no time and no memory: its zeros are multiplied like any number. It acts on the parameter, on its gradient
(so that no moment gathers what a masked weight cannot use) and, where it changes, on the optimizer's state.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from demp.errors import UsageError
from demp.graph import GraphState, NeuronGraph
from demp.graph.forward import first_names


def maskable(model: nn.Module, graph: NeuronGraph) -> dict[str, nn.Parameter]:
    """Trainable weights of convolutions and matrix products by first name, in forward order: what a mask may thin out.

    Norms, biases, embeddings and positions are none.
    """
    tensors, _ = first_names(model)
    used = dict.fromkeys(c.weight for c in graph.contractions if c.weight is not None)
    found = {name: tensors[name] for name in used if name in tensors}
    return {n: p for n, p in found.items() if isinstance(p, nn.Parameter) and p.requires_grad and p.dim() > 1}


class Masks:
    """The masks of one model at its present widths. Empty, they cost nothing."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.kept: dict[str, Tensor] = {}
        """Parameter name -> which entries are there, laid out like the parameter, which makes products several times
        faster. A cut shrinks these tensors with the parameters."""

    def __bool__(self) -> bool:
        return bool(self.kept)

    def put(self, masks: Mapping[str, Tensor], optimizers: Iterable[torch.optim.Optimizer] = ()) -> int:
        """Take new masks: what leaves or returns starts at zero, with no memory in the optimizer. Entries that changed.

        Raises:
            UsageError: a mask of another shape, or of no parameter.
        """
        parameters = dict(self._model.named_parameters())
        for name, mask in masks.items():
            if name not in parameters or mask.shape != parameters[name].shape or mask.dtype != torch.bool:
                raise UsageError(f"the mask for {name} does not fit: give booleans in the shape of that parameter")
        changed = 0
        for name, mask in masks.items():
            parameter = parameters[name]
            new = torch.empty_like(parameter, dtype=torch.bool).copy_(mask)
            old = self.kept.get(name)
            other = ~new if old is None else new != old
            many = int(other.sum())
            if many:
                forget(parameter, other, optimizers)
            changed += many
            self.kept[name] = new
        self.hold_weights()
        return changed

    @torch.no_grad()
    def hold_gradients(self) -> None:
        """Set the gradients of masked weights to zero."""
        if self.kept:
            self._multiply([(p.grad, mask) for p, mask in self._pairs() if p.grad is not None])

    @torch.no_grad()
    def hold_weights(self) -> None:
        """Multiply the weights by their masks, so that masked weights are zero."""
        if self.kept:
            self._multiply(self._pairs())

    def masked(self) -> int:
        """Entries that are held at zero."""
        return sum(int((~mask).sum()) for mask in self.kept.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of every mask, by parameter name."""
        return {name: mask.clone() for name, mask in self.kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back, on a model of the widths that they were saved at."""
        parameters = dict(self._model.named_parameters())
        self.kept.clear()
        for name, mask in state.items():
            self.kept[name] = torch.empty_like(parameters[name], dtype=torch.bool).copy_(mask)

    def _pairs(self) -> list[tuple[Any, Tensor]]:
        parameters = dict(self._model.named_parameters())
        return [(parameters[name], mask) for name, mask in self.kept.items()]

    def _multiply(self, pairs: list[tuple[Any, Tensor]]) -> None:
        multiply = torch._foreach_mul_  # pyright: ignore[reportPrivateImportUsage]
        if pairs:
            multiply([tensor for tensor, _ in pairs], [mask for _, mask in pairs])


@torch.no_grad()
def forget(parameter: nn.Parameter, entries: Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Set entries of a weight to zero, and what the optimizers remember of them."""
    parameter.masked_fill_(entries, 0.0)

    def clear(tensor: Tensor) -> Tensor:
        return tensor.masked_fill_(entries, 0.0) if tensor.shape == parameter.shape else tensor

    for optimizer in optimizers:
        if parameter in optimizer.state:
            tree_map_only(Tensor, clear, dict(optimizer.state[parameter]))


def emptied(state: GraphState, masks: Mapping[str, Tensor], dead: Tensor | None = None) -> Tensor:
    """Per class: masks took every weight that reads it, so that it can go without a change.

    A neuron that only removed neurons read is not read. A channel that a residual sum reads counts there whatever its
    weights are. Of the ``dead`` (per class) those that masks took every input of go as well.
    """
    graph = state.graph
    axes, going = present(state, masks), graph.none_removed()
    stays = state.removed.clone()
    stays[0] = True
    for layer in graph.layers:
        stays[layer.classes[~layer.removable]] = True
    while True:
        more = unread(graph, masks, axes, going)
        if dead is not None:
            more |= unfed(graph, masks, axes, going) & dead
        more &= ~stays & ~going
        if not bool(more.any()):
            return going
        going |= more


Axes = dict[str, dict[int, Tensor]]
"""Weight -> axis -> class of each entry along it, as it lies now."""


def present(state: GraphState, masks: Mapping[str, Tensor]) -> Axes:
    """The axes of all masked weights."""
    axes: Axes = {name: {} for name in masks}
    for slot in state.graph.slots:
        if slot.tensor in axes:
            axes[slot.tensor][slot.axis] = state.present(slot.classes)
    return axes


def left_along(mask: Tensor, axis: int, classes: Mapping[int, Tensor], going: Tensor) -> Tensor:
    """Per index of an axis: is a weight left, other than those that go along the other axes?"""
    left = mask.cpu()
    for other, owners in classes.items():
        if other != axis:
            left = left & ~going[owners].view([-1 if d == other else 1 for d in range(mask.dim())])
    return left.movedim(axis, 0).flatten(1).any(1)


def unread(graph: NeuronGraph, masks: Mapping[str, Tensor], axes: Axes, going: Tensor) -> Tensor:
    """Per class: no reader that stays has a weight for it."""
    read, nonzero = graph.none_removed(), graph.none_removed()
    for one in graph.reads:
        read[one.classes] = True
        if one.seat is not None or one.weight not in masks or one.weight_axis not in axes[one.weight]:
            nonzero[one.classes] = True
            continue
        classes = axes[one.weight]
        left = left_along(masks[one.weight], one.weight_axis, classes, going)
        nonzero[classes[one.weight_axis][left]] = True
    return read & ~nonzero


def unfed(graph: NeuronGraph, masks: Mapping[str, Tensor], axes: Axes, going: Tensor) -> Tensor:
    """Per class: no weight that makes it is left, but for its shift."""
    made, fed = graph.none_removed(), graph.none_removed()
    for layer in graph.layers:
        for tensor, axis in layer.producers:
            if len(graph.shapes[tensor]) < 2:
                continue
            made[layer.classes] = True
            if tensor not in masks or axis not in axes[tensor]:
                fed[layer.classes] = True
                continue
            left = left_along(masks[tensor], axis, axes[tensor], going)
            fed[axes[tensor][axis][left]] = True
    return made & ~fed


def constant(state: GraphState, masks: Mapping[str, Tensor]) -> Tensor:
    """Per class: masks took every weight that makes it, so that it says the same for every input: what its shift says.

    Never a channel on either side of a residual sum, or one that something else than a masked weight makes.
    """
    graph = state.graph
    found = unfed(graph, masks, present(state, masks), graph.none_removed()) & ~state.removed
    known = {pair for layer in graph.layers for pair in layer.producers}
    known |= {(read.weight, read.weight_axis) for read in graph.reads}
    for slot in graph.slots:
        if len(graph.shapes[slot.tensor]) > 1 and (slot.tensor, slot.axis) not in known:
            found[slot.classes] = False
    for join in graph.joins:
        found[join.stream] = found[join.branch] = False
    found[0] = False
    return found
