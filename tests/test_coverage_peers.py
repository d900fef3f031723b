"""benchmarks/coverage_peers.py: shares by hand, groups that fail by halving, and a row that only the peer has."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import coverage_peers
import demp


def test_groups_that_fail_are_found_by_halving():
    assert coverage_peers.working(list("abcdefgh"), lambda roots: not set(roots) & {"b", "g"}) == list("acdefh")
    assert coverage_peers.working(["a"], lambda roots: False) == []


def test_shares_count_each_entry_once():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    half = torch.tensor([True, False] * 3)
    reach = {("0.weight", 0): half, ("0.bias", 0): half, ("2.weight", 1): half}
    assert coverage_peers.shares(model, reach) == (3 / 8, (12 + 3 + 6) / 44)


def test_what_only_the_peer_removes_has_a_reason():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3), nn.Flatten())
    inputs = (torch.randn(2, 3, 8, 8),)
    graph = demp.trace(model, inputs)
    theirs, note = coverage_peers.peer_reach(model, inputs, 60.0)
    assert not note and bool(theirs["0.weight", 0].all()) and bool(theirs["1.weight", 0].all())
    assert ("3.weight", 0) not in theirs, "its outputs are those of the model"
    ours = {("1.weight", 0): torch.ones(5).bool()}
    ((reason, channels),) = coverage_peers.reasons(model, graph, ours, theirs).items()
    assert channels == 6 and reason == "read before any activation"
