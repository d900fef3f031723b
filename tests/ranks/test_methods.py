"""Every method on two ranks: the same neurons, the same masks, the same weights."""

import pytest
import torch

import contract
from thinning import mostly_slow

ROWS = [name for name in (*contract.rows(), *contract.COMBINATIONS) if name != "twin"]
"""A twin looks at one saved network, which every process here would save for itself."""
QUICK = ("demp", "demp+rigl", "early-crop-s", "network-slimming", "rigl", "apoz", "demp flops=0.5")
"""Pushes, masks that move, scores before training, scales, counts of zeros, a budget."""


@pytest.mark.parametrize("case", mostly_slow([*ROWS, "demp flops=0.5", "narrow flops=0.5"], QUICK))
def test_ranks_stay_equal_to_the_bit(fleet, case):
    name, _, budget = case.partition(" ")
    first, second = fleet(contract.replicated, name, budget)
    assert first["history"] == second["history"]
    assert first["masks"].keys() == second["masks"].keys()
    for key in ("weights", "moments"):
        assert all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True))
    assert all(torch.equal(mask, second["masks"][key]) for key, mask in first["masks"].items())
    assert first["masks"] or any(removed for _, removed, _ in first["history"])
