"""Random small networks, random dead neurons: the cut network computes the same, twice over."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import comparing
import demp
import killing
import nets

KINDS = st.sampled_from(list(nets.ACTIVATIONS))
NETWORKS = {
    "plain": st.fixed_dictionaries(
        {
            "dims": st.sampled_from([1, 2, 3]),
            "widths": st.lists(st.integers(1, 6), min_size=1, max_size=3),
            "activation": KINDS,
            "norm": st.booleans(),
            "stride": st.integers(1, 2),
            "dilation": st.integers(1, 2),
            "pool": st.sampled_from(["max", "average", "none"]),
            "end": st.sampled_from(["flatten", "mean"]),
        }
    ),
    "residual": st.fixed_dictionaries(
        {
            "widths": st.lists(st.sampled_from([3, 3, 4, 5]), min_size=2, max_size=4),
            "inner": st.integers(1, 5),
            "stride": st.integers(1, 2),
            "activation": KINDS,
            "pre": st.booleans(),
            "squeezed": st.booleans(),
            "normed": st.booleans(),
        }
    ),
    "dense": st.fixed_dictionaries(
        {
            "width": st.integers(1, 5),
            "growth": st.integers(1, 4),
            "layers": st.integers(1, 3),
            "activation": KINDS,
        }
    ),
    "branches": st.fixed_dictionaries(
        {"widths": st.lists(st.integers(1, 4), min_size=1, max_size=4), "activation": KINDS}
    ),
    "separable": st.fixed_dictionaries(
        {
            "width": st.integers(1, 5),
            "hidden": st.integers(2, 8),
            "squeeze": st.integers(1, 4),
            "activation": KINDS,
        }
    ),
    "gated": st.fixed_dictionaries(
        {"hidden": st.integers(1, 8), "how": st.sampled_from(["separate", "packed", "glu"])}
    ),
    "tokens": st.fixed_dictionaries(
        {
            "width": st.integers(1, 5),
            "hidden": st.integers(1, 6),
            "activation": KINDS,
            "layout": st.sampled_from(["nhwc", "tokens"]),
        }
    ),
    "grouped": st.fixed_dictionaries(
        {
            "dims": st.sampled_from([1, 2, 3]),
            "groups": st.integers(1, 5),
            "inner": st.integers(1, 3),
            "outer": st.integers(1, 3),
            "transposed": st.booleans(),
            "activation": KINDS,
        }
    ),
    "skips": st.fixed_dictionaries(
        {
            "dims": st.sampled_from([1, 2, 3]),
            "width": st.integers(1, 4),
            "deep": st.integers(1, 4),
            "shared": st.booleans(),
        }
    ),
    "paths": st.fixed_dictionaries(
        {
            "width": st.integers(1, 6),
            "hidden": st.integers(1, 4),
            "tied": st.booleans(),
            "how": st.sampled_from(["mask", "steps", "clamp", "inplace", "gate"]),
        }
    ),
    "experts": st.fixed_dictionaries(
        {"count": st.integers(1, 4), "hidden": st.integers(1, 6), "packed": st.booleans()}
    ),
}
SHARE = st.sampled_from([0.2, 0.5, 0.9, 1.0])


def check(kind: str, options: dict, share: float, seed: int) -> None:
    model, inputs = getattr(nets, kind)(**options)
    nets.settle(model, seed)
    inputs = tuple(x.double() for x in inputs)
    rng = random.Random(seed)
    for _ in range(2):
        graph = demp.trace(model, inputs)
        dead = killing.some_dead(graph, share, rng)
        killing.kill(model, graph, dead)
        before = comparing.outputs(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert all(0 < layer.kept <= layer.before for layer in report.layers.values())
        if not report.held:
            kept = {layer.name: layer.width - len(dead.get(layer.name, [])) for layer in graph.layers}
            assert kept == {name: layer.kept for name, layer in report.layers.items()}
            assert report.removed == sum(map(len, dead.values()))


def property_test(kind: str, examples: int):
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(options=NETWORKS[kind], share=SHARE, seed=st.integers(0, 1000))
    def run(options, share, seed):
        check(kind, options, share, seed)

    return run


test_plain = property_test("plain", 10)
test_residual = property_test("residual", 8)
test_dense = property_test("dense", 5)
test_branches = property_test("branches", 5)
test_separable = property_test("separable", 5)
test_gated = property_test("gated", 5)
test_tokens = property_test("tokens", 5)
test_grouped = property_test("grouped", 8)
test_skips = property_test("skips", 5)
test_paths = property_test("paths", 5)
test_experts = property_test("experts", 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_many(kind):
    property_test(kind, 150)()
