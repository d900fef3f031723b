"""A cut model remembers its dense self: kept indices in dense numbering, over any number of cuts and traces."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import comparing
import demp
import killing
import nets
from demp.surgery import record_of


def select(dense: dict[str, torch.Tensor], kept: dict[tuple[str, int], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The dense tensors at the kept indices."""
    small = dict(dense)
    for (name, axis), indices in kept.items():
        small[name] = small[name].index_select(axis, indices)
    return small


@settings(max_examples=6)
@given(st.sampled_from(["residual", "dense", "separable", "tokens", "plain"]), st.integers(0, 1000))
def test_kept_indices_compose_over_cuts_and_traces(kind, seed):
    model, inputs = getattr(nets, kind)()
    nets.settle(model)
    inputs = tuple(x.double() for x in inputs)
    dense = comparing.state(model)
    rng = random.Random(seed)
    for _ in range(3):
        graph = demp.trace(model, inputs)
        demp.cut(model, killing.some_dead(graph, 0.3, rng), example_inputs=inputs, exact=False, graph=graph)
    record = record_of(model)
    if record is None:
        return
    small, now = select(dense, record.kept), comparing.tensors_of(model)
    assert all(torch.equal(small[name], now[name]) for name in now)
    assert record.dense_shapes == {name: tuple(tensor.shape) for name, tensor in dense.items()}
    assert all(torch.equal(kept.sort().values, kept.unique()) for kept in record.kept.values())
    assert record.neurons == demp.trace(model, inputs).dense.neurons


def test_costs_in_the_record():
    model, inputs = nets.mlp(4, 8, 3), (torch.randn(5, 4),)
    dense = demp.cost(model, inputs)
    assert dense.flops == dense.paper_flops == 2 * 5 * (4 * 8 + 8 * 3)
    demp.cut(model, {"1": [0, 1]}, example_inputs=inputs, exact=False)
    demp.cut(model, {"1": [0, 1]}, example_inputs=(torch.randn(2, 4),), exact=False)
    record = record_of(model)
    assert (record.dense_neurons, record.neurons) == (8, 4)
    assert record.dense_flops == dense.flops
    assert record.flops == 2 * 5 * (4 * 4 + 4 * 3)
    assert record.paper_flops == 2 * 5 * (4 * 4 + 8 * 3)
    assert demp.cost(model, (torch.randn(1, 4),)).paper_flops == 2 * (4 * 4 + 8 * 3)


def test_layers_are_numbered_anew_after_a_cut():
    model, inputs = nets.mlp(4, 6, 3), (torch.randn(5, 4),)
    demp.cut(model, {"1": [1, 4]}, example_inputs=inputs, exact=False)
    assert demp.trace(model, inputs).layer("1").width == 4
    demp.cut(model, {"1": [1]}, example_inputs=inputs, exact=False)
    assert record_of(model).kept["0.weight", 0].tolist() == [0, 3, 5]


def test_inputs_are_described():
    model, inputs = nets.Forward(lambda s, x, k: s.net(x * k), net=nets.mlp(4, 6, 3)), (torch.randn(5, 4), 2.0)
    demp.cut(model, {"net.1": [0]}, example_inputs=inputs, exact=False)
    wanted = {"args": [{"shape": [5, 4], "dtype": "float32"}, {"value": 2.0}], "kwargs": {}}
    assert record_of(model).inputs == wanted
