"""What a network spends is what the cut network really has; what a neuron saves is a difference of two of them."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import demp
from demp.budgets import Budget, Meter, sizes_of
from demp.errors import UsageError
from nets import plain
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples

NETS = [(PlainNet, IMAGE), (ResidualNet, IMAGE), (Mlp, VECTOR)]


def metered(kind, shape, clock=None):
    model = build(kind)
    inputs = (examples(shape),)
    graph = demp.trace(model, inputs)
    return model, inputs, Meter(graph, sizes_of(model), clock)


def some(graph, seed):
    """A random selection that leaves at least one neuron of every layer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(graph.classes, generator=generator) < 0.4
    for layer in graph.layers:
        chosen[layer.classes[0]] = False
    chosen[0] = False
    return chosen


@pytest.mark.parametrize(("kind", "shape"), NETS)
@pytest.mark.parametrize("seed", range(3))
def test_spent_is_what_the_cut_network_has(kind, shape, seed):
    model, inputs, meter = metered(kind, shape)
    removed = some(meter.graph, seed)
    cut = copy.deepcopy(model)
    layers = {layer.name: removed[layer.classes] for layer in meter.graph.layers}
    demp.cut(cut, layers, example_inputs=inputs, exact=False)
    with FlopCounterMode(display=False) as counter:
        cut(*inputs)
    tensors = [*cut.parameters(), *cut.buffers()]
    assert meter.spent("flops", removed) == counter.get_total_flops()
    assert meter.spent("parameters", removed) == sum(p.numel() for p in cut.parameters())
    assert meter.spent("memory", removed) == sum(t.numel() * t.element_size() for t in tensors)
    assert meter.spent("neurons", removed) == demp.trace(cut, inputs).dense.neurons


@pytest.mark.parametrize(("kind", "shape"), NETS)
@pytest.mark.parametrize("resource", ["flops", "parameters", "neurons", "memory"])
def test_savings_of_one_neuron(kind, shape, resource):
    """A neuron that meets itself nowhere (no class on both sides of one weight) saves exactly the difference."""
    _, _, meter = metered(kind, shape)
    removed = some(meter.graph, 5)
    saved = meter.savings(resource, removed)
    assert not saved[removed].any()
    for layer in meter.graph.layers:
        for c in layer.classes[~removed[layer.classes]].unique().tolist():
            without = removed.clone()
            without[c] = True
            difference = meter.spent(resource, removed) - meter.spent(resource, without)
            assert saved[c].item() == pytest.approx(difference, rel=1e-9, abs=1.0 if resource == "flops" else 1e-9)


def test_goals():
    _, _, meter = metered(Mlp, VECTOR)
    dense = meter.graph.none_removed()
    goals = meter.goals(Budget(flops=0.5, neurons=7))
    assert goals == {"flops": 0.5 * meter.graph.at(dense).flops(), "neurons": 7.0}
    assert meter.lack(goals, dense) == {"flops": 0.5 * meter.graph.at(dense).flops(), "neurons": 15.0}
    assert meter.shares(goals, dense) == {"flops": 1.0, "neurons": 1.0}


def test_latency_is_asked_once_for_each_network_and_survives_a_save():
    asked = []

    def clock(removed):
        asked.append(int(removed.sum()))
        return 1e-3 * (10 - int(removed.sum())), 1e-3 * 10

    _, _, meter = metered(Mlp, VECTOR, clock)
    dense, fewer = meter.graph.none_removed(), some(meter.graph, 0)
    assert meter.spent("latency", dense) == meter.spent("latency", dense) == pytest.approx(10_000)
    meter.spent("latency", fewer)
    assert asked == [0, int(fewer.sum())]
    _, _, other = metered(Mlp, VECTOR, clock)
    other.load_state_dict(meter.state_dict())
    assert other.spent("latency", fewer) == meter.spent("latency", fewer)
    assert len(asked) == 2


def test_latency_without_a_clock_is_refused():
    _, _, meter = metered(Mlp, VECTOR)
    with pytest.raises(UsageError, match="a latency budget is measured"):
        meter.goals(Budget(latency=0.5))


def test_tied_weights_count_once():
    model, inputs = plain(dims=1)
    meter = Meter(demp.trace(model, inputs), sizes_of(model))
    assert meter.spent("parameters", meter.graph.none_removed()) == sum(p.numel() for p in model.parameters())
