"""Which of the dead go: coupling, floors, multiples, include and exclude."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import comparing
import demp
import killing
import nets
from demp.surgery import Limits, plan_cut

X = (torch.randn(3, 4, dtype=torch.float64),)


def cut(model: nn.Module, dead: dict, inputs=X, joins: bool = True, **limits) -> demp.CutReport:
    """Kill and cut."""
    nets.settle(model)
    graph = demp.trace(model, inputs, joins=joins)
    killing.kill(model, graph, dead)
    before = comparing.outputs(model, inputs)
    report = demp.cut(model, dead, example_inputs=inputs, limits=Limits(**limits), graph=graph)
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
    return report


def test_the_floor_holds_when_every_neuron_is_dead():
    report = cut(nets.mlp(4, 6, 5, 3), {"1": range(6), "3": range(5)})
    assert {name: layer.kept for name, layer in report.layers.items()} == {"1": 1, "3": 1}
    assert report.held == {
        "1": "1 dead neurons kept for the minimum width",
        "3": "1 dead neurons kept for the minimum width",
    }
    assert report.removed == 9


def test_a_layer_at_its_floor_has_nothing_left_to_give():
    model = nets.mlp(4, 6, 3)
    cut(model, {"1": range(6)})
    report = cut(model, {"1": [0]})
    assert not report.happened and report.held == {"1": "1 dead neurons kept for the minimum width"}


@pytest.mark.parametrize("floor", [1, 2, 4, 6, 9])
def test_floor(floor):
    report = cut(nets.mlp(4, 6, 3), {"1": range(6)}, floor=floor)
    assert report.layers["1"].kept == min(floor, 6)


@pytest.mark.parametrize(("dead", "kept"), [(range(3), 16), (range(8), 8), (range(9), 8), (range(16), 8), ([], 16)])
def test_widths_stay_multiples(dead, kept):
    report = cut(nets.mlp(4, 16, 3), {"1": dead}, multiple=8)
    assert report.layers["1"].kept == kept
    short = 16 - kept < len(dead)
    assert bool(report.held) == short


def test_a_width_that_is_no_multiple_shrinks_to_one():
    assert cut(nets.mlp(4, 21, 3), {"1": range(7)}, multiple=8).layers["1"].kept == 16
    assert cut(nets.mlp(4, 21, 3), {"1": range(2)}, multiple=8).layers["1"].kept == 21
    assert cut(nets.mlp(4, 5, 3), {"1": range(4)}, multiple=8).layers["1"].kept == 5


def test_include_and_exclude():
    dead = {"1": [0], "3": [0], "5": [0]}
    report = cut(nets.mlp(4, 3, 3, 3, 3), dead, include=("[13]",), exclude=("3",))
    assert {name: layer.kept for name, layer in report.layers.items()} == {"1": 2, "3": 3, "5": 3}
    assert report.held == {"3": "excluded", "5": "excluded"}


def test_excluding_one_coupled_layer_keeps_all():
    model, inputs = nets.residual((3, 3))
    dead = {"1": [0], "2.act2": [0]}
    report = cut(model, dead, tuple(x.double() for x in inputs), joins=False, exclude=("2.act2",))
    assert not report.happened and report.held == {"2.act2": "excluded"}


def test_neurons_alive_in_a_coupled_layer_stay():
    model, inputs = nets.residual((3, 3))
    inputs = tuple(x.double() for x in inputs)
    graph = demp.trace(nets.settle(model), inputs, joins=False)
    assert graph.layer("1").coupled == ("2.act2",)
    report = demp.cut(model, {"1": [0, 1]}, example_inputs=inputs, graph=graph)
    assert not report.happened and report.held == {"1": "2 alive in a coupled layer"}
    assert cut(model, {"1": [0, 1], "2.act2": [1]}, inputs, joins=False).held == {"1": "1 alive in a coupled layer"}


def test_no_tensor_loses_its_last_index():
    """All that one branch adds to a join is dead: its convolution keeps one channel, or it could not run."""
    model, inputs = nets.dense(width=4, growth=2, layers=2)
    inputs = tuple(x.double() for x in inputs)
    dead = {"layers.1.1": [4, 5], "act": [4, 5]}
    report = cut(model, dead, inputs)
    assert report.removed == 2  # one channel, in two layers
    assert model.layers[0][5].weight.shape[0] == 1
    assert report.held == {name: "1 dead neurons kept for the minimum width" for name in dead}


def test_multiples_hold_in_layers_that_share_neurons():
    model, inputs = nets.dense(width=8, growth=4, layers=2)
    inputs = tuple(x.double() for x in inputs)
    graph = demp.trace(model.double(), inputs)
    dead = {name: [i for i in range(0, graph.layer(name).width, 3)] for name in ("layers.0.1", "layers.1.1", "act")}
    report = cut(model, dead, inputs, multiple=4)
    widths = {layer.name: layer.width for layer in graph.layers}
    for name, layer in report.layers.items():
        assert layer.kept % 4 == 0 or layer.kept == widths[name]


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.data())
def test_plans_only_take_what_was_offered(floor, multiple, data):
    graph = GRAPH
    dead = {
        layer.name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=layer.width, max_size=layer.width)))
        for layer in graph.layers
    }
    plan = plan_cut(graph.dense, dead, Limits(floor=floor, multiple=multiple))
    for layer in graph.layers:
        removed = plan.after.removed[layer.classes]
        width, left = layer.width, int((~removed).sum())
        assert not bool((removed & ~dead[layer.name]).any())
        assert left == width or (left >= floor and left % multiple == 0)
    assert all(min(shape, default=1) > 0 for shape in plan.after.shapes.values())


GRAPH = demp.trace(*nets.dense(width=7, growth=4, layers=2))


def test_the_hash_of_a_plan_is_that_of_what_is_gone():
    flags = {layer.name: torch.zeros(layer.width, dtype=torch.bool) for layer in GRAPH.layers}
    nothing = plan_cut(GRAPH.dense, flags, Limits())
    flags["layers.0.4"][1] = True
    one = plan_cut(GRAPH.dense, flags, Limits())
    assert nothing.empty and not one.empty and nothing.hash != one.hash
    assert one.hash == plan_cut(one.after, flags, Limits()).hash


@pytest.mark.parametrize(("name", "value"), [("floor", 0), ("multiple", 0), ("floor", -3)])
def test_impossible_limits(name, value):
    with pytest.raises(demp.UsageError, match=f"{name} is {value}"):
        Limits(**{name: value})
