"""The network at one moment: a value, and every number of it what counting one by one gives."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import comparing
import demp
import killing
import nets
from demp.graph import NeuronGraph


def traced() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], NeuronGraph]:
    model, inputs = nets.residual((6, 5, 4))
    model, inputs = nets.settle(model), (inputs[0].double(),)
    return model, inputs, demp.trace(model, inputs)


MODEL, INPUTS, GRAPH = traced()
SEEDS = st.integers(0, 2**31 - 1)


def some_removed(seed: int) -> torch.Tensor:
    removed = torch.rand(GRAPH.classes, generator=torch.Generator().manual_seed(seed)) < 0.4
    removed[0] = False
    return removed


def test_it_is_a_value():
    removed = GRAPH.none_removed()
    state = GRAPH.at(removed)
    removed[1:] = True
    assert not state.removed.any() and state.neurons == GRAPH.dense.neurons == sum(one.width for one in GRAPH.layers)
    assert GRAPH.dense is GRAPH.dense and state.shapes == GRAPH.shapes


@given(SEEDS)
def test_numbers_are_those_of_counting(seed):
    removed = some_removed(seed)
    state = GRAPH.at(removed)
    for layer in GRAPH.layers:
        assert state.widths[layer.name] == sum(not removed[c] for c in layer.classes.tolist())
    for slot in GRAPH.slots:
        here = [i for i, c in enumerate(slot.classes.tolist()) if not removed[c]]
        kept = state.kept(slot.classes).tolist()
        assert sorted(kept) == here and len(here) == state.shapes[slot.tensor][slot.axis]
        assert [state.ranks[slot.classes[i]] for i in kept] == sorted(state.ranks[slot.classes[i]] for i in kept)
        assert torch.equal(state.present(slot.classes), slot.classes[state.kept(slot.classes)])
    entries = {name: torch.Size(shape).numel() for name, shape in state.shapes.items()}
    assert state.parameters(entries) == sum(entries.values())
    assert state.parameters(["head.weight"]) == entries.get("head.weight", 0)


@given(SEEDS, SEEDS)
def test_an_index_finds_in_the_old_axis_what_is_there_now(first, second):
    before = some_removed(first)
    old, new = GRAPH.at(before), GRAPH.at(before | some_removed(second))
    for slot in GRAPH.slots:
        index = new.index_into(old, slot.classes)
        assert torch.equal(old.kept(slot.classes)[index], new.kept(slot.classes))


@given(SEEDS)
def test_who_is_agreed_on_is_dead_wherever_it_is_read(seed):
    draw = torch.Generator().manual_seed(seed)
    dead = {layer.name: torch.rand(layer.width, generator=draw) < 0.6 for layer in GRAPH.layers}
    found = GRAPH.agreed(dead)
    for c in range(GRAPH.classes):
        voices = [
            bool(flag)
            for layer in GRAPH.layers
            if layer.reads
            for one, flag in zip(layer.classes.tolist(), dead[layer.name], strict=True)
            if one == c
        ]
        assert bool(found[c]) == (bool(voices) and all(voices))


def test_a_cut_model_has_the_shapes_of_the_state():
    model = copy.deepcopy(MODEL)
    dead = killing.killed(model, GRAPH, 0.4, 0)
    demp.cut(model, dead, example_inputs=INPUTS, graph=GRAPH)
    state = GRAPH.at(killing.classes_of(GRAPH, dead))
    assert state.shapes == {name: tuple(t.shape) for name, t in comparing.tensors_of(model).items()}
    assert demp.trace(model, INPUTS).dense.flops() == state.flops()


def test_what_version_0_1_asked_the_graph_is_answered_with_a_warning():
    removed = some_removed(1)
    state, names = GRAPH.at(removed), set(GRAPH.shapes)
    for asked, answer in (
        (lambda: GRAPH.neurons(), GRAPH.dense.neurons),
        (lambda: GRAPH.neurons(removed), state.neurons),
        (lambda: GRAPH.sizes(removed), state.shapes),
        (lambda: GRAPH.parameters(names, removed), state.parameters(names)),
        (lambda: GRAPH.flops(removed, paper=True), state.flops(paper=True)),
        (lambda: GRAPH.flops_by_operation(removed), state.flops_by_operation()),
        (lambda: GRAPH.nothing_gone().tolist(), GRAPH.dense.removed.tolist()),
    ):
        with pytest.warns(DeprecationWarning, match="ask the state"):
            assert asked() == answer


def test_states_are_equal_when_the_same_is_removed_from_the_same_graph():
    removed = some_removed(1)
    state = GRAPH.at(removed)
    removed |= True  # a state does not see what happens to the vector later
    assert state == GRAPH.at(some_removed(1)) and state.hash == GRAPH.at(some_removed(1)).hash
    assert state != GRAPH.dense and state != demp.trace(MODEL, INPUTS).at(some_removed(1))
    assert GRAPH.dense.without(some_removed(1)) == state
