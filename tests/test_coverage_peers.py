"""benchmarks/coverage_peers.py: shares by hand, groups that fail by halving, and a row that only the peer has."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import coverage_peers
import demp


def test_groups_that_fail_are_found_by_halving():
    found = coverage_peers.working(list("abcdefgh"), lambda roots: not set(roots) & {"b", "g"})
    assert list(found) == list("acdefh")
    assert list(coverage_peers.working(["a"], lambda roots: False)) == []


def test_what_takes_too_long_ends():
    with pytest.raises(coverage_peers.Late), coverage_peers.limited(0.05):
        while True:
            pass


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


def test_kinds_of_reasons():
    only = {"read before any activation": 5, "no activation that keeps zero at zero follows": 2, "something else": 1}
    record = {"name": "x", "demp": (0.5, 0.25), "peer": (1.0, 1.0), "only": only, "note": ""}
    line = "| x | 50 % | 100 % | 25 % | 100 % | read before any activation (7); something else (1) |  |"
    assert coverage_peers.row(record) == line


def test_a_zero_leaves_a_linear_stream_but_no_layer_norm():
    """Torch-Pruning removes both alive. Of the second, removing even a zero changes the outputs."""
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    keep = torch.arange(8) != 3
    for norm, changed in ((False, False), (True, True)):
        first, second = nn.Linear(6, 8).double(), nn.Linear(8, 2).double()
        with torch.no_grad():
            first.weight[3], first.bias[3] = 0.0, 0.0
            whole, part = first(x), first(x)[:, keep]
            if norm:
                whole, part = (nn.functional.layer_norm(t, t.shape[1:]) for t in (whole, part))
            small = nn.functional.linear(part, second.weight[:, keep], second.bias)
            assert bool((second(whole) - small).abs().max() > 1e-10) == changed
