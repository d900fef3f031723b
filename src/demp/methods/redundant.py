"""Which neurons others of their layer can stand in for, by class, and what they hand over when they fade."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from demp.activity.covariances import Covariance
from demp.activity.tally import Key, key_of
from demp.graph import GraphState
from demp.importance.redundancy import ridge_of, stand_in, unsaid
from demp.regularization.handover import Handover, Taker
from demp.regularization.taps import reach

FEWEST = 16
"""Rows, examples or positions; what varies together in fewer does so by chance."""


def enough(covariances: Mapping[Key, Covariance]) -> dict[Key, Covariance]:
    """Those over enough rows to tell what others can say of a neuron."""
    return {key: covariance for key, covariance in covariances.items() if covariance.rows >= FEWEST}


def unsaid_by_class(
    importance: Tensor,
    state: GraphState,
    after: Tensor,
    covariances: Mapping[Key, Covariance],
    takers: Sequence[Taker],
) -> Tensor:
    """Importance of each class, less what the others that one of its readers reads say as well.

    Of several readers the one counts in which most is left. A class keeps its importance where a weight reads it that
    takes no handover or was not watched. ``after``: those that count as removed.
    """
    found = torch.zeros(len(importance), dtype=torch.float64, device="cpu")
    whole = torch.ones(len(importance), dtype=torch.bool, device="cpu")
    whole[torch.cat([r.classes for r in state.graph.reads if r.seat is None] or [whole.new_zeros(0).long()])] = False
    hands = {key_of(taker.read): taker for taker in takers}
    for read in (r for r in state.graph.reads if r.seat is None):
        covariance = covariances.get(key_of(read))
        classes = read.classes[state.kept(read.classes)]
        if covariance is None or key_of(read) not in hands:
            whole[classes] = True
            continue
        classes = classes[covariance.places[0]]
        present = ~after[classes] & (classes > 0)
        mine, matrix = classes[present], moments(hands[key_of(read)], covariance)[present][:, present]
        share = unsaid(importance[mine], matrix, ridge_of(len(mine), covariance.rows))
        found.scatter_reduce_(0, mine, share, "amax")  # a class may lie at several places
    return torch.where(whole, importance.double(), found)


def moments(taker: Taker, covariance: Covariance) -> Tensor:
    """What there is to say: how neurons vary about their means, or about 0 where nothing takes these."""
    if taker.centred:
        return covariance.matrix
    return covariance.matrix + torch.outer(covariance.mean, covariance.mean)


def handovers(
    state: GraphState,
    after: Tensor,
    chosen: Tensor,
    covariances: Mapping[Key, Covariance],
    takers: Sequence[Taker],
    frozen: Tensor,
) -> tuple[Handover, ...]:
    """What the chosen leave in the weights that read them, where others read there can stand in for them.

    ``frozen``: those that something frozen scales, so that they cannot fade.
    """
    found = []
    for taker in takers:
        read = taker.read
        covariance = covariances.get(key_of(read))
        if covariance is None:
            continue
        kept = state.kept(read.classes)
        classes = read.classes[kept][covariance.places[0]]
        going = (chosen[classes] & ~after[classes]).nonzero().flatten()
        staying = (~chosen[classes] & ~after[classes]).nonzero().flatten()
        if len(going) and len(staying):
            ridge, dense = ridge_of(len(staying), covariance.rows), kept[covariance.places]
            mean = covariance.mean
            coefficients = stand_in(moments(taker, covariance), going, staying, ridge)
            means = mean[going] - mean[staying] @ coefficients
            places = dense[:, going], dense[:, staying]
            met = reach(taker.module, covariance.size) if taker.bias else None
            said = coefficients.float(), means.float()
            late = frozen[classes[going]]
            found.append(Handover(read.weight, read.weight_axis, *places, *said, taker.bias, met, late))
    return tuple(found)
