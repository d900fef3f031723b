"""The parameters that scale a neuron's output: how much the loss minds them, and how they are shrunk.

A neuron behind a normalisation is scaled by its entries of scale and shift, a head of attention by the weights that
read it (query and key, which make it, do not scale it), any other by the weights and the bias that make it. Where the
activation is positively homogeneous (ReLU, LeakyReLU), a factor on these is a factor on its output; with any activation
that maps 0 to 0 the neuron outputs 0, or is read with 0, once they are 0, so that removing it changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import _foreach_mul as products_of  # pyright: ignore[reportPrivateImportUsage]
from torch import _foreach_mul_ as scale_each  # pyright: ignore[reportPrivateImportUsage]

from demp.graph import GraphState, NeuronGraph, Slot
from demp.graph.neurons import removable_classes
from demp.graph.parts import HEADS, LINEAR
from demp.parallel import local_piece, whole_tensor
from demp.regularization.handover import Handover, Taker, hand_over, still_trained, takers
from demp.regularization.slices import PresentSlices, Slices


@dataclass(frozen=True)
class Shrink:
    """What happens to neurons' scales after the optimizer moved them: outside the loss, and outside its moments.

    ``factors`` (one per class) multiply every parameter that scales the neuron: scale and shift of its norms, or its
    weights and bias. ``amounts`` (one per class, or one for all) are taken from the norms' scales alone, down to 0:
    ``gamma <- sign(gamma) max(|gamma| - amount, 0)``, the decoupled form of the lasso (proximal step; App. F.5).
    """

    factors: Tensor | None = None
    amounts: Tensor | float | None = None
    times_lr: bool = False
    """Are amounts in units of each parameter's learning rate?"""
    handovers: tuple[Handover, ...] = ()
    """What moves into the weights that read the fading neurons, of which ``share`` is carried out now."""
    share: float = 0.0
    last: bool = False
    """Is this their last step?"""


class OutputScales:
    """The scaling parameters of all removable neurons of one model, at present widths."""

    def __init__(self, model: nn.Module, graph: NeuronGraph) -> None:
        self._model, self._graph = model, graph
        self._parameters = parameters = dict(model.named_parameters())
        self._slices = PresentSlices(model, scaling_slots(graph))
        self._norm_scales = {id(parameters[norm.scale]) for norm in graph.norms if norm.scale in parameters}

    def slices(self, state: GraphState) -> list[Slices]:
        """The scaling slices that the optimizer may move now, in the order in which they lie."""
        return [one for one in self._slices.at(state) if one.parameter.requires_grad]

    def takers(self, state: GraphState) -> list[Taker]:
        """Return the weights that fading neurons can hand over to."""
        return takers(self._model, state)

    def frozen(self, state: GraphState) -> Tensor:
        """Per class: is there a frozen parameter that scales it? It neither fades nor says how the loss minds it."""
        found = torch.zeros_like(state.removed)
        for one in self._slices.at(state):
            if not one.parameter.requires_grad:
                found[one.classes.cpu()] = True
        found[0] = False
        return found

    @torch.no_grad()
    def sensitivity(self, state: GraphState) -> Tensor | None:
        """Per class, on the model's device: the derivative of the loss by a factor on the neuron's output.

        ``sum p * dL/dp`` over the parameters that scale it, from the gradients of this step; exact where the activation
        is positively homogeneous (Molchanov et al. 2019, the gate form of a first-order Taylor expansion). None without
        gradients.
        """
        slices = [one for one in self.slices(state) if one.parameter.grad is not None]
        if not slices:
            return None
        values = [whole_tensor(one.parameter.detach()) for one in slices]
        gradients = [dense(one.parameter.grad) for one in slices if one.parameter.grad is not None]
        device = values[0].device
        products = products_of(values, gradients)
        sums = [summed(product, one.axis).to(device) for product, one in zip(products, slices, strict=True)]
        classes = torch.cat([one.classes.to(device) for one in slices])
        found = torch.zeros(self._graph.classes, dtype=sums[0].dtype, device=device)
        return found.index_add_(0, classes, torch.cat([s.to(found.dtype) for s in sums]))

    @torch.no_grad()
    def apply(
        self,
        shrink: Shrink,
        state: GraphState,
        copies: Sequence[Mapping[str, Tensor]] = (),
        moving: Mapping[int, float] | None = None,
    ) -> None:
        """Carry out a shrink. Factors act on ``copies`` of the model too (tensors by the model's names).

        So a moving average, in which a neuron would live on for long, has it at 0 when the model has. Amounts, which
        are part of a step, are taken from those parameters alone that the optimizer moved (``moving``: id to rate).
        """
        slices = self.slices(state)
        if shrink.handovers:
            handovers = still_trained(shrink.handovers, self._parameters)
            hand_over(self._parameters, state, handovers, shrink.share, copies, last=shrink.last)
        if shrink.factors is not None:
            touched = [one for one in slices if bool((shrink.factors[one.classes.cpu()] != 1).any())]
            if touched:
                factors = [one.per_index(shrink.factors.to(one.parameter.device)) for one in touched]
                scale_each([local_piece(one.parameter.detach()) for one in touched], factors)
                names = {id(parameter): slot.tensor for parameter, slot in self._slices.axes}
                for one, factor in zip(touched, factors, strict=True):
                    for copied in copies:
                        theirs = copied.get(names[id(one.parameter)])
                        if theirs is not None and theirs is not one.parameter:
                            local_piece(theirs.detach()).mul_(factor.to(theirs.device))
        if shrink.amounts is not None:
            for one in slices:
                if id(one.parameter) in self._norm_scales and (moving is None or id(one.parameter) in moving):
                    place, amount = local_piece(one.parameter.detach()), shrink.amounts
                    amount = one.per_index(amount.to(place.device)) if isinstance(amount, Tensor) else amount
                    amount = amount * moving[id(one.parameter)] if shrink.times_lr and moving is not None else amount
                    place.copy_(place.sign() * (place.abs() - amount).clamp(min=0))

    @torch.no_grad()
    def sizes(self, state: GraphState) -> Tensor:
        """Per class: the sum of ``|gamma|`` over its norms, or of ``|w|`` over the weights that make it; float64."""
        found = torch.zeros(self._graph.classes, dtype=torch.float64, device="cpu")
        for one in self.slices(state):
            if id(one.parameter) in self._norm_scales or one.parameter.dim() > 1:
                size = summed(whole_tensor(one.parameter.detach()).abs(), one.axis)
                found.index_add_(0, one.classes.cpu(), size.double().cpu())
        return found


def dense(gradient: Tensor) -> Tensor:
    """All of a gradient, also of an embedding with ``sparse=True``."""
    return whole_tensor(gradient.to_dense() if gradient.layout == torch.sparse_coo else gradient)


def summed(values: Tensor, axis: int) -> Tensor:
    """Summed over all axes but one."""
    return values if values.dim() == 1 else values.movedim(axis, 0).flatten(1).sum(1)


def scaling_slots(graph: NeuronGraph) -> list[Slot]:
    """The slots of scale and shift of every norm over removable neurons, and of weights and biases without a norm.

    Of heads the slots of the weights that read them. A linear neuron that an activation reads as well may be read in
    front of its norm: there its weights count, too.
    """
    removable = removable_classes(graph)
    slots = {(s.tensor, s.axis): s for s in graph.slots if bool(removable[s.classes].any())}
    normed = {norm.producer for norm in graph.norms if norm.scale is not None}
    wanted: dict[tuple[str, int], None] = {}
    for norm in graph.norms:
        if norm.scale is not None:
            wanted |= {(name, 0): None for name in (norm.scale, norm.shift) if name is not None}
    for number, layer in enumerate(graph.layers):
        if layer.activation == HEADS:
            wanted |= {(r.weight, r.weight_axis): None for r in graph.reads if number in r.layers}
            continue
        for weight, axis in layer.producers:
            if weight not in normed or (layer.activation == LINEAR and layer.coupled):
                wanted[weight, axis] = None
                biases = (n.shift for n in graph.norms if n.scale is None and n.producer == weight)
                wanted |= {(name, 0): None for name in biases if name is not None}
    return [slots[key] for key in wanted if key in slots]
