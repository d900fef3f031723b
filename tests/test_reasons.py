"""Refused neurons are told by their reason; its places are named once."""

from demp.analysis.refusals import by_reason
from demp.graph.parts import Refusal


def test_reasons_that_differ_by_their_place_are_one():
    mixed, mean = "{} over the neuron axis mixes neurons (at {})", "read before any activation (by a mean at {})"
    reasons = [
        mixed.format("std", "a.0"), mixed.format("std", "the model itself"), mixed.format("var", "a.0"),
        mean.format("b"), mean.format("b"), mean.format("c"), "no activation (none at all) follows",
    ]  # fmt: skip
    refusals = [Refusal(f"layer{i}", reason, 1) for i, reason in enumerate(reasons)]
    assert {why: [r.name for r in found] for why, found in by_reason(refusals).items()} == {
        mixed.format("std", "a.0 and 1 more"): ["layer0", "layer1"],
        mixed.format("var", "a.0"): ["layer2"],
        mean.format("b and 1 more"): ["layer3", "layer4", "layer5"],
        "no activation (none at all) follows": ["layer6"],
    }
