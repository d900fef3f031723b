"""Who is chosen: a literal greedy twin where nothing is given back, landing, floors, multiples, streams."""

import math

import pytest
import torch

import demp
from demp.budgets import Budget, Meter, Question, choose, sizes_of
from demp.surgery import Limits
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples


def metered(kind=PlainNet, shape=IMAGE, clock=None, **options):
    model = build(kind, **options)
    return Meter(demp.trace(model, (examples(shape),)), sizes_of(model), clock)


def importance(meter, seed=0):
    return torch.rand(meter.graph.classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01


def chosen_one_by_one(meter, goals, scores, power, floor=1):
    """The rule in its plainest form: the lowest importance over saving, one neuron at a time."""
    removed = meter.graph.none_removed()
    while lack := meter.lack(goals, removed):
        best, lowest = None, math.inf
        for layer in meter.graph.layers:
            present = layer.classes[~removed[layer.classes]]
            for c in present.tolist():
                if len(present) <= floor:
                    continue
                trial = removed.clone()
                trial[c] = True
                saved = max(
                    (meter.spent(name, removed) - meter.spent(name, trial)) / excess for name, excess in lack.items()
                )
                if saved > 0 and scores[c] / saved**power < lowest:
                    best, lowest = c, scores[c] / saved**power
        if best is None:
            break
        removed[best] = True
    return removed


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("budget", [Budget(neurons=0.5), Budget(neurons=7)])
def test_a_literal_twin(budget, power):
    """All neurons save the same of this resource, so that neither bites nor giving back change who goes."""
    meter = metered(Mlp, VECTOR)
    scores, goals = importance(meter), meter.goals(budget)
    found = choose(meter, meter.graph.none_removed(), goals, Question(importance=scores, limits=Limits(), power=power))
    assert torch.equal(found.chosen, chosen_one_by_one(meter, goals, scores, power))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", ["flops=0.5", "parameters=0.3", "memory=0.6", "flops=0.7,neurons=0.4"])
def test_it_lands_below_and_one_more_neuron_would_be_too_much(seed, budget):
    meter = metered(ResidualNet, stream=12, inner=20)
    goals = meter.goals(demp.budgets.as_budget(budget))
    question = Question(importance=importance(meter, seed), limits=Limits())
    found = choose(meter, meter.graph.none_removed(), goals, question)
    assert not found.lack and not meter.lack(goals, found.chosen)
    for c in found.chosen.nonzero().flatten().tolist():
        fewer = found.chosen.clone()
        fewer[c] = False
        assert meter.lack(goals, fewer), "a neuron could have stayed"


def test_the_less_important_go_first():
    meter = metered(PlainNet)
    scores = importance(meter)
    layer = meter.graph.layers[0]
    scores[layer.classes[:3]] = 1e-9
    found = choose(
        meter, meter.graph.none_removed(), meter.goals(Budget(neurons=15)), Question(importance=scores, limits=Limits())
    )
    assert found.chosen[layer.classes[:3]].all() and int(found.chosen.sum()) == 3


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_some_stay_whatever_they_cost(value):
    meter = metered(PlainNet)
    scores = importance(meter)
    layer = meter.graph.layers[1]
    scores[layer.classes] = value
    found = choose(
        meter, meter.graph.none_removed(), meter.goals(Budget(flops=0.4)), Question(importance=scores, limits=Limits())
    )
    assert not found.chosen[layer.classes].any() and found.chosen.any()


@pytest.mark.parametrize("floor", [1, 3])
def test_floors_hold_and_what_is_lacking_is_said(floor):
    meter = metered(PlainNet)
    goals = meter.goals(Budget(flops=1))
    question = Question(importance=importance(meter), limits=Limits(floor=floor))
    found = choose(meter, meter.graph.none_removed(), goals, question)
    assert all(int((~found.chosen[layer.classes]).sum()) == floor for layer in meter.graph.layers)
    assert found.lack == {"flops": meter.spent("flops", found.chosen) - 1}


def test_excluded_layers_keep_all():
    meter = metered(PlainNet)
    name = meter.graph.layers[0].name
    question = Question(importance=importance(meter), limits=Limits(exclude=(name,)))
    found = choose(meter, meter.graph.none_removed(), meter.goals(Budget(flops=0.5)), question)
    assert not found.chosen[meter.graph.layer(name).classes].any() and not found.lack


def test_widths_stay_multiples():
    meter = metered(ResidualNet, stream=16, inner=16)
    question = Question(importance=importance(meter), limits=Limits(multiple=4))
    goals = meter.goals(Budget(flops=0.5))
    found = choose(meter, meter.graph.none_removed(), goals, question)
    assert not found.lack
    assert all(int((~found.chosen[layer.classes]).sum()) % 4 == 0 for layer in meter.graph.layers)


def test_a_stream_loses_channels_in_the_order_of_its_blocks():
    meter = metered(ResidualNet, stream=12, inner=6)
    (join,) = meter.graph.joins
    scores = importance(meter)
    scores[join.branch] = 1e-9
    question = Question(importance=scores, limits=Limits(), streams_first=True)
    found = choose(meter, meter.graph.none_removed(), meter.goals(Budget(flops=0.4)), question)
    later, earlier = found.chosen[join.branch[join.target]], found.chosen[join.stream[join.source]]
    assert later.any() and not (later & ~earlier).any()


def test_what_is_removed_already_is_no_choice():
    meter = metered(Mlp, VECTOR)
    removed = meter.graph.none_removed()
    removed[meter.graph.layers[0].classes[:6]] = True
    found = choose(
        meter, removed, meter.goals(Budget(neurons=10)), Question(importance=importance(meter), limits=Limits())
    )
    assert not (found.chosen & removed).any() and int(found.chosen.sum()) == 6


def test_a_latency_is_met_with_as_many_flops_as_it_allows():
    """A stub clock: 5 units whatever is removed, and one per share of the FLOPs."""
    plain = metered(PlainNet)
    dense = plain.spent("flops", plain.graph.none_removed())
    meter = metered(PlainNet, clock=lambda removed: (5.0 + 5.0 * plain.spent("flops", removed) / dense, 10.0))
    goals = meter.goals(Budget(latency=0.75))
    found = choose(meter, meter.graph.none_removed(), goals, Question(importance=importance(meter), limits=Limits()))
    assert not found.lack
    assert 0.40 <= meter.spent("flops", found.chosen) / dense <= 0.5


def test_a_latency_that_no_network_meets():
    meter = metered(PlainNet, clock=lambda removed: (1.0, 1.0))
    goals = meter.goals(Budget(latency=0.5))
    found = choose(meter, meter.graph.none_removed(), goals, Question(importance=importance(meter), limits=Limits()))
    assert found.lack == {"latency": 500_000.0}
