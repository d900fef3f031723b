"""Who goes by rank, against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import demp
from demp.importance.ranking import lowest, lowest_of_each_layer, take
from demp.surgery import Limits, plan_cut
from runs import IMAGE, PlainNet, ResidualNet, build, examples

GRAPHS = [demp.trace(build(kind), (examples(IMAGE),)) for kind in (PlainNet, ResidualNet)]
COUPLED = demp.trace(build(ResidualNet), (examples(IMAGE),), joins=False)


def brute(graph: demp.NeuronGraph, scores: Tensor, target: float, floor: int) -> set[tuple[str, int]]:
    """One neuron at a time, the lowest first, while its layer stays above the floor."""
    gone: set[tuple[str, int]] = set()
    ranked = sorted(
        ((float(scores[c]), c, layer.name, i) for layer in graph.layers for i, c in enumerate(layer.classes.tolist()))
    )
    for _, _, name, i in ranked:
        if len(gone) >= round(target * graph.dense.neurons):
            break
        if graph.layer(name).width - sum(n == name for n, _ in gone) > floor:
            gone.add((name, i))
    return gone


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.integers(1, 4), st.sampled_from([0, 1]), st.booleans())
def test_the_lowest_of_the_network_go(seed: int, target: float, floor: int, which: int, ties: bool):
    graph = GRAPHS[which]
    scores = torch.rand(graph.classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = scores.round(decimals=1) if ties else scores
    found, notes = lowest(graph.dense, scores, target, Limits(floor=floor))
    chosen = {(name, i) for name, flags in found.items() for i in flags.nonzero().flatten().tolist()}
    assert chosen == brute(graph, scores, target, floor)
    assert bool(notes) == (len(chosen) < round(target * graph.dense.neurons))
    plan = plan_cut(graph.dense, found, Limits(floor=floor))
    assert graph.dense.neurons - plan.after.neurons == len(chosen)


def test_a_target_out_of_reach_stops_at_the_floor_and_says_so():
    graph = GRAPHS[0]
    found, notes = lowest(graph.dense, torch.zeros(graph.classes), 0.95, Limits(floor=2))
    assert [layer.width - int(found[layer.name].sum()) for layer in graph.layers] == [2, 2, 2]
    assert notes == ("stopped at neuron sparsity 0.667 of 0.95: every layer left is at its floor, excluded or refused",)


def test_excluded_layers_are_not_ranked():
    graph = GRAPHS[0]
    found, _ = lowest(graph.dense, torch.zeros(graph.classes), 0.5, Limits(exclude=("act1",)))
    assert "act1" not in found
    assert sum(int(flags.sum()) for flags in found.values()) == 9


def test_coupled_neurons_count_in_every_layer_and_go_together():
    graph = COUPLED
    scores = torch.arange(graph.classes, dtype=torch.float64)
    found, _ = lowest(graph.dense, scores, 6 / 20, Limits())
    assert torch.equal(found["stem_act"], found["act2"])
    assert sum(int(flags.sum()) for flags in found.values()) == 6


def test_rounds_go_on_from_what_is_gone():
    graph = GRAPHS[0]
    scores = torch.rand(graph.classes, generator=torch.Generator().manual_seed(1))
    first, _ = lowest(graph.dense, scores, 0.3, Limits())
    state = plan_cut(graph.dense, first, Limits()).after
    second, _ = lowest(state, scores, 0.6, Limits())
    both = plan_cut(state, second, Limits()).after
    once, _ = lowest(graph.dense, scores, 0.6, Limits())
    assert both == plan_cut(graph.dense, once, Limits()).after


@pytest.mark.parametrize("graph", GRAPHS)
def test_each_layer_on_its_own(graph: demp.NeuronGraph):
    scores = torch.rand(graph.classes, generator=torch.Generator().manual_seed(2))
    found, notes = lowest_of_each_layer(graph.dense, scores, 0.5, Limits())
    assert not notes
    for layer in graph.layers:
        wanted = scores[layer.classes].argsort()[: round(layer.width / 2)].sort().values
        assert torch.equal(found[layer.name].nonzero().flatten(), wanted)


def test_layers_may_have_floors_of_their_own_and_classes_may_be_spared():
    graph = GRAPHS[0]
    spared = graph.none_removed()
    spared[graph.layer("act3").classes[:4]] = True
    scores = torch.zeros(graph.classes)
    chosen, left = take(graph.dense, scores, 18, Limits(), graph.layers, floors=[5, 2, 1], spared=spared)
    assert [int(chosen[layer.classes].sum()) for layer in graph.layers] == [1, 3, 3]
    assert not bool((chosen & spared).any())
    assert left == 11


def test_in_each_layer_a_neuron_that_several_carry_counts_once():
    scores = torch.arange(COUPLED.classes, dtype=torch.float64)
    found, notes = lowest_of_each_layer(COUPLED.dense, scores, 0.5, Limits())
    assert {name: int(flags.sum()) for name, flags in found.items()} == {"stem_act": 3, "act1": 4, "act2": 3}
    assert notes == ()


def test_what_is_not_ranked_stays():
    graph = GRAPHS[0]
    scores = torch.arange(graph.classes, dtype=torch.float64)
    scores[graph.layer("act1").classes] = torch.inf
    found, notes = lowest(graph.dense, scores, 0.6, Limits())
    assert {name: int(flags.sum()) for name, flags in found.items()} == {"act2": 4, "act3": 6}
    assert notes[0].startswith("stopped at neuron sparsity 0.556 of 0.6")
