"""Network Slimming agrees with a literal loop, and says what it does not rank."""

import math

import pytest
import torch
from penalty_reference import SCALES, Twin, plain, run_both
from torch import nn

import demp
from demp.errors import UsageError
from demp.methods import create, find
from demp.methods.network_slimming import NetworkSlimming, NetworkSlimmingConfig, scale_sizes
from runs import IMAGE, VECTOR, Mlp, ResidualNet, build, examples, train

STEPS, NEURONS = 24, 18


def slimming(model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    shape = VECTOR if isinstance(model, Mlp) else IMAGE
    given = {"example_inputs": (examples(shape),), "total_steps": STEPS} | options
    return create("network-slimming", model, optimizer, **given)


def smallest(twin: Twin, count: int) -> dict[str, list[int]]:
    """The neurons with the smallest |gamma|, one by one, while their layer has more than one."""
    going: dict[str, list[int]] = {name: [] for name in SCALES}
    ranked = sorted((abs(twin.tensors[SCALES[n]][i].item()), n, i) for n in SCALES for i in twin.left(n))
    for _, name, i in ranked:
        if count > 0 and len(twin.left(name)) - len(going[name]) > 1:
            going[name].append(i)
            count -= 1
    return going


@pytest.mark.parametrize(
    ("passes", "prune_at", "cuts"), [(1, 0.5, {12: 6}), (2, 0.75, {9: 3, 18: 6}), (1, 1.0, {24: 6})]
)
def test_it_is_the_literal_loop(passes: int, prune_at: float, cuts: dict[int, int]):
    model, optimizer = plain(0.02)
    twin = Twin(model, 0.02)
    pruner = slimming(
        model, optimizer, strength=0.05, target_neuron_sparsity=1 / 3, passes=passes, prune_at=prune_at
    )  # fmt: skip

    def penalty(step: int, twin: Twin):
        if step >= max(cuts):
            return 0.0
        return 0.05 * sum(twin.tensors[name].abs().sum() for name in SCALES.values())

    def cut(step: int, twin: Twin) -> None:
        if step in cuts:
            twin.remove(smallest(twin, cuts[step] - sum(map(len, twin.gone.values()))))

    run_both(pruner, twin, range(STEPS), penalty, cut)
    assert pruner.finish().neurons_after == NEURONS - 6


def test_neurons_without_a_scale_are_not_ranked_and_the_report_says_so():
    model, optimizer = plain(0.01)
    pruner = slimming(model, optimizer, target_neuron_sparsity=0.9)
    train(model, optimizer, IMAGE, range(STEPS))
    report = next(r for r in pruner.history if r.happened)
    assert "7 neurons without a normalisation scale were not ranked" in report.notes
    assert any("stopped at neuron sparsity 0.500 of 0.9" in note for note in report.notes)
    assert not bool(pruner.state.removed[pruner.graph.layer("act3").classes].any())


def test_a_layer_wise_ranking_takes_the_share_of_every_layer():
    model, optimizer = plain(0.01)
    pruner = slimming(model, optimizer, target_neuron_sparsity=0.4, ranking="layer")
    train(model, optimizer, IMAGE, range(12))
    gone = {layer.name: int(pruner.state.removed[layer.classes].sum()) for layer in pruner.graph.layers}
    assert gone == {"act1": 2, "act2": 2, "act3": 0}


class TwoNorms(nn.Module):
    """Two branches that both have a norm make the same neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
        self.norm_a, self.norm_b, self.act = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm_a(self.a(x)) + self.norm_b(self.b(x))).mean((2, 3)))


def test_the_largest_of_several_scales_counts():
    model = build(TwoNorms)
    model.norm_a.weight.data[:] = torch.tensor([0.1, -0.9, 0.3, 0.0])
    model.norm_b.weight.data[:] = torch.tensor([0.2, 0.5, -0.4, 0.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = slimming(model, optimizer)
    found = scale_sizes(pruner._view)
    assert found[pruner.graph.layer("act").classes].tolist() == pytest.approx([0.2, 0.9, 0.4, 0.0])


@pytest.mark.parametrize("joins", [True, False])
def test_it_cuts_residual_streams_and_proves_it(joins: bool):
    model = build(ResidualNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    pruner = slimming(model, optimizer, target_neuron_sparsity=0.5, joins=joins, strength=0.01)
    train(model, optimizer, IMAGE, range(STEPS))
    report = next(r for r in pruner.history if r.happened)
    assert report.removed == 10
    assert report.difference is not None and report.difference < 1e-12
    assert pruner.finish().removed == 0


def test_without_scales_it_is_refused():
    model = build(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(UsageError, match="no neuron that may go has a normalisation scale"):
        slimming(model, optimizer)
    with pytest.raises(UsageError, match="no neuron that may go has a normalisation scale"):
        create("network-slimming+rigl", model, optimizer, example_inputs=(examples(VECTOR),), total_steps=STEPS)


def test_until_the_cut_strength_zero_is_plain_training_to_the_bit():
    (ours, our_optimizer), (theirs, their_optimizer) = plain(0.02), plain(0.02)
    slimming(ours, our_optimizer, strength=0.0)
    losses = train(ours, our_optimizer, IMAGE, range(11))
    assert losses == train(theirs, their_optimizer, IMAGE, range(11))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_when_it_cuts_and_where_the_penalty_acts():
    method = NetworkSlimming(NetworkSlimmingConfig(), 320)
    assert [s for s in range(321) if method.is_due(s)] == [160]
    assert [method.penalty(s).strength for s in (0, 159, 160, 319)] == [1e-4, 1e-4, 0.0, 0.0]
    assert NetworkSlimming(NetworkSlimmingConfig(passes=3, prune_at=0.9), 100).cuts == [30, 60, 90]
    assert NetworkSlimming(NetworkSlimmingConfig(), 1).cuts == [1]
    assert find("network-slimming") is NetworkSlimming
    model, optimizer = plain(0.01)
    assert slimming(model, optimizer, penalty_on="all-scales").requirements.penalty_on == "all-scales"


@pytest.mark.parametrize(
    "options",
    [
        {"target_neuron_sparsity": 0.0}, {"target_neuron_sparsity": 1.0}, {"strength": -1.0}, {"strength": math.nan},
        {"prune_at": 0.0}, {"prune_at": 1.5}, {"passes": 0}, {"ranking": "local"}, {"penalty_on": "parameters"},
        {"penalty_in": "weights"}, {"floor": 0},
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(options: dict):
    (name,) = options
    with pytest.raises(UsageError, match=name):
        NetworkSlimmingConfig(**options)
