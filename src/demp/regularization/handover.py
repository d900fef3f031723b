"""Neurons that fade hand over: what those that stay can say of them moves into the weights that read them.

Where a layer computes ``sum_j W[:, j] a_j`` and neuron j goes, ``W[:, k] += c[k, j] W[:, j]`` for every k that stays,
with the c of `demp.importance.redundancy.stand_in`, loses of it only what the others cannot say. It is done in the
measure in which the neuron fades: where its factor falls from f to f', ``(f - f') c[k, j] W[:, j]`` is added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.graph import GraphState, Read
from demp.parallel import is_sharded, local_piece


@dataclass(frozen=True)
class Handover:
    """Of the neurons that one weight reads: who goes, who stays, and what these say of those."""

    weight: str
    axis: int
    """Of the weight, along which neurons lie."""
    going: Tensor
    staying: Tensor
    """(positions of one neuron, neurons): places on the axis, dense numbering."""
    coefficients: Tensor
    """(staying, going), float32."""

    def to_plain(self) -> dict[str, object]:
        """For a checkpoint."""
        return dict(vars(self))


def takers(parameters: Mapping[str, Tensor], state: GraphState) -> list[Read]:
    """The reads whose weight can take it: trained, whole along this axis, and used for nothing else.

    Not where a weight is read twice, makes these neurons too (tied embeddings), meets only part of them (grouped
    convolutions), or is sharded along this axis.
    """
    asked = [read for read in state.graph.reads if read.seat is None]
    made = {pair for layer in state.graph.layers for pair in layer.producers}
    found = []
    for read in asked:
        parameter = parameters.get(read.weight)
        if parameter is None or not parameter.requires_grad or not parameter.is_floating_point():
            continue
        once = sum(other.weight == read.weight for other in asked) == 1
        whole = not is_sharded(parameter) or read.weight_axis != 0
        width = len(state.kept(read.classes))
        if once and whole and (read.weight, read.weight_axis) not in made and fits(parameter, read.weight_axis, width):
            found.append(read)
    return found


def fits(parameter: Tensor, axis: int, width: int) -> bool:
    """Does the weight meet every neuron with entries of its own?"""
    return axis < parameter.dim() and parameter.shape[axis] == width


@torch.no_grad()
def hand_over(
    parameters: Mapping[str, Tensor],
    state: GraphState,
    handovers: Sequence[Handover],
    share: float,
    copies: Sequence[Mapping[str, Tensor]] = (),
) -> None:
    """Carry out a share of every handover, in the model and in the copies that are cut with it."""
    reads = {read.weight: read for read in state.graph.reads if read.seat is None}
    for one in handovers:
        own, classes = parameters[one.weight], reads[one.weight].classes
        kept = state.kept(classes)
        if not fits(own, one.axis, len(kept)):
            continue
        now = torch.full_like(classes, -1)
        now[kept] = torch.arange(len(kept))  # kept places need not lie in the dense order
        going, staying = now[one.going], now[one.staying]
        left, right = (going >= 0).all(0), (staying >= 0).all(0)
        coefficients = share * one.coefficients[right][:, left]
        places = going[:, left], staying[:, right]
        theirs = [copied[one.weight] for copied in copies if copied.get(one.weight, own) is not own]
        for tensor in (own, *theirs):
            add_from(local_piece(tensor.detach()), one.axis, *places, coefficients)


def add_from(weight: Tensor, axis: int, going: Tensor, staying: Tensor, coefficients: Tensor) -> None:
    """``W[:, staying] += W[:, going] c^T`` along the axis, position by position, in float32 or wider."""
    device, wide = weight.device, torch.promote_types(weight.dtype, torch.float32)
    from_going = weight.index_select(axis, going.flatten().to(device)).movedim(axis, -1).to(wide)
    change = from_going.unflatten(-1, going.shape) @ coefficients.to(device, wide).T
    weight.index_add_(axis, staying.flatten().to(device), change.flatten(-2).movedim(-1, axis).to(weight.dtype))
