"""Each feature of PyTorch code: offered and cut exactly, or refused with its reason."""

import copy

import pytest

import demp
import nets
from features import FEATURES, doubled


@pytest.mark.parametrize("name", FEATURES)
def test_feature(name):
    feature = FEATURES[name]
    model, inputs = feature.make()
    model, inputs = nets.settle(model), doubled(inputs)
    for seed in range(feature.again):
        graph = demp.trace(model, inputs)
        offered = {layer.name: int(layer.removable.sum()) for layer in graph.layers}
        if seed == 0:
            assert {one: n for one, n in offered.items() if n or one in feature.offered} == feature.offered, (
                graph.refused
            )
            assert all(any(refusal.name == one for refusal in graph.refused) for one, n in offered.items() if n == 0)
            assert any(feature.refused in refusal.reason for refusal in graph.refused) or not feature.refused
        dead = nets.killed(model, graph, 0.4, seed)
        before = nets.outputs(model, copy.deepcopy(inputs))
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert nets.gap(before, nets.outputs(model, copy.deepcopy(inputs))) < 1e-10
        assert report.removed == sum(map(len, dead.values())) or report.held
        assert bool(report.removed) == bool(any(offered.values())) or seed
