"""How many weights of each tensor stay: uniform, Erdos-Renyi-Kernel or global shares, and which they are, by a score.

A density is the share of entries that are there; 1 minus it is the weight sparsity of the tensor. Ties always go the
same way: of equal scores the lower flat index stays (row-major over the tensor's axes, whatever its memory format), as
in jaxpruner.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Name -> 1 - S for every tensor."""
    return dict.fromkeys(shapes, 1.0 - sparsity)


def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Name -> eps * (sum of all axes) / (product of all axes), with eps such that 1 - S of all entries stay.

    A tensor that would exceed 1 stays dense, and eps is solved again for the rest. This only raises eps, so that it
    does not matter whether such tensors become dense all at once or one per round. Zeros are counted as whole entries
    of each tensor, rounded down (Evci et al. 2020, appendix; Mocanu et al. 2018).
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    zeros = {name: math.floor(sparsity * size) for name, size in sizes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        ones = sum(sizes[name] - zeros[name] for name in rest) - sum(zeros[name] for name in dense)
        eps = ones / sum(raw[name] * sizes[name] for name in rest)
        above = {name for name in rest if eps * raw[name] > 1.0}
        if not above:
            return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}
        dense |= above


def kept(entries: int, density: float, floor: int = 1) -> int:
    """How many of ``entries`` stay: round(n * density), half to even, not below the floor nor above n."""
    return min(entries, max(floor, round(entries * density)))


@torch.no_grad()
def top(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest scores, as booleans in their shape; of equal ones the lower flat index."""
    flat = scores.reshape(-1)
    if count >= len(flat):
        return torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat > threshold
    equal = (flat == threshold).nonzero().flatten()
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


@torch.no_grad()
def top_of_all(scores: Mapping[str, Tensor], density: float, floor: int = 1) -> dict[str, Tensor]:
    """Name -> the entries among the highest round(n * density) of all tensors together, in one ranking.

    Every tensor keeps its ``floor`` highest, whatever the others have. Ties go in the order of the tensors.
    """
    flat = {name: score.reshape(-1) for name, score in scores.items()}
    sure = {name: top(score, floor) for name, score in flat.items()}
    ranked = torch.cat([torch.where(sure[name], math.inf, score) for name, score in flat.items()])
    count = max(round(len(ranked) * density), sum(int(s.sum()) for s in sure.values()))
    chosen = top(ranked, count).split([len(score) for score in flat.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, chosen, strict=True)}
