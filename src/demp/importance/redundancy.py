"""What neurons say that others of their layer do not, and what those say of one that goes.

All of it is linear least squares on the covariances of activations, with a ridge: neurons in units of their own
deviation, and the ridge on the diagonal.
"""

import torch
from torch import Tensor

RIDGE = 0.03
"""Of the regressions, in units of a neuron's variance, where rows are many: see `ridge_of`."""
FLOOR = 0.01
"""Of a neuron's unit, as a share of the mean deviation: one that varies less (it fired once, say) is hardly asked,
since what it said in a few rows would be multiplied by much."""
ROUNDS = 32
"""A layer's neurons are eliminated in about so many rounds, between which the inverse is worked out anew."""
OFFERED = 2
"""Candidates of a round, as a multiple of those that it eliminates."""


def ridge_of(neurons: int, rows: int) -> float:
    """The ridge for so many neurons and rows: fewer rows than neurons say little that holds elsewhere."""
    return RIDGE * (1 + neurons / max(rows, 1))


def correlations(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Correlations with the ridge on the diagonal, and the units; a constant correlates with nothing.

    A unit is the neuron's deviation, and at least `FLOOR` times the mean deviation.
    """
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    unit = deviation.clamp(min=float(FLOOR * deviation.mean()))
    unit = torch.where(unit > 0, unit, 1.0)
    found = covariance / unit[:, None] / unit
    found.fill_diagonal_(1 + ridge)
    return found, unit


def stand_in(covariance: Tensor, going: Tensor, staying: Tensor, ridge: float = RIDGE) -> Tensor:
    """Coefficients (staying, going): what the neurons that stay say of each that goes.

    Least squares about the means: ``sum_k c[k, j] (a_k - mean_k)`` comes closest to ``a_j - mean_j``. ``going`` and
    ``staying`` are rows of the covariance.
    """
    ridged, unit = correlations(covariance, ridge)
    found = torch.linalg.solve(ridged[staying][:, staying], ridged[staying][:, going])
    return found * unit[going] / unit[staying][:, None]


def unsaid(importance: Tensor, covariance: Tensor, ridge: float = RIDGE) -> Tensor:
    """Importance times the share of a neuron's variance that the others leave unexplained, neuron after neuron.

    Backward elimination: the neuron goes for which this product is least, then the next among those that are left, to
    the last. So of two that say the same, the first to go costs little and the other all. What comes out never falls
    in the order of elimination: a neuron that may go after another costs at least as much as that one. The share is
    ``1 / (R^-1)_jj``, R the ridged correlations of those that are left.
    """
    inverse = torch.linalg.inv(correlations(covariance, ridge)[0])
    weight, left = importance.double(), torch.arange(len(importance), device="cpu")
    found, highest = torch.zeros_like(weight), 0.0
    at_once = max(1, len(left) // ROUNDS)
    while len(left):
        cost = weight[left] / inverse.diagonal().clamp(min=1e-12)
        offered = cost.argsort(stable=True)[: OFFERED * at_once]
        order, costs = eliminated(inverse[offered][:, offered], weight[left[offered]], min(at_once, len(left)))
        for position, value in zip(order, costs, strict=True):
            highest = max(highest, value)
            found[left[offered[position]]] = highest
        leaving = offered[torch.tensor(order, device="cpu")]
        stays = torch.ones(len(left), dtype=torch.bool, device="cpu")
        stays[leaving] = False
        toward = inverse[stays][:, leaving]
        inverse = inverse[stays][:, stays] - toward @ torch.linalg.solve(inverse[leaving][:, leaving], toward.T)
        left = left[stays]
    return found


def eliminated(inverse: Tensor, weight: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Which of some candidates go first, and at which cost each, from their part of the inverse."""
    inverse, there = inverse.clone(), torch.ones(len(weight), dtype=torch.bool, device="cpu")
    order, costs = [], []
    for _ in range(count):
        cost = (weight / inverse.diagonal().clamp(min=1e-12)).masked_fill(~there, torch.inf)
        position = int(cost.argmin())
        order.append(position)
        costs.append(float(cost[position]))
        there[position] = False
        row = inverse[position].clone()
        inverse -= torch.outer(row, row) / row[position]
    return order, costs
