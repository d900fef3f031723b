"""Architectures of other libraries: neurons that are really dead leave, twice over, and the outputs stay."""

import warnings

import pytest
import torch

import comparing
import demp
import killing
from architectures import enliven, make, names

FAST = (
    "torchvision/mobilenet_v3_small",
    "timm/tinynet_e",
    "transformers/gpt2",
    "transformers/mixtral",
)
SWEPT = (
    "torchvision/squeezenet1_1",
    "timm/tinynet_e",
    "timm/mixer_s32_224",
    "transformers/bart",
    "transformers/mixtral",
)


def built(name: str) -> tuple[torch.nn.Module, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        return enliven(*make(name))


def cut_dead(model, inputs, graph, dead) -> int:
    """Cut neurons that were killed; the outputs must stay."""
    before = comparing.outputs(model, inputs)
    report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
    scale = max(float(out.abs().max()) for out in before)
    assert scale > 0 and comparing.gap(before, comparing.outputs(model, inputs)) <= 1e-10 * scale
    assert report.removed == sum(map(len, dead.values())) or report.held
    return report.removed


def twice(name: str) -> None:
    model, inputs = built(name)
    for seed in range(2):
        graph = demp.trace(model, inputs)
        dead = killing.killed(model, graph, 0.3, seed, low=0.0)
        assert cut_dead(model, inputs, graph, dead) > 0 or not dead


@pytest.mark.parametrize("name", FAST)
def test_some(name):
    twice(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in FAST])
def test_zoo(name):
    twice(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_layer_after_layer(name):
    model, inputs = built(name)
    for layer in [layer.name for layer in demp.trace(model, inputs).layers]:
        graph = demp.trace(model, inputs)
        chosen = graph.layer(layer)
        classes = chosen.classes[chosen.removable][::3]
        gone = graph.none_removed()
        gone[classes] = True
        gone &= ~killing.live_anyway(graph)
        dead = {one.name: gone[one.classes].nonzero().flatten().tolist() for one in graph.layers}
        dead = {one: indices for one, indices in dead.items() if indices}
        killing.kill(model, graph, dead, low=0.0)
        assert cut_dead(model, inputs, graph, dead) > 0 or not dead


def test_enough_architectures():
    count = {
        library: sum(name.startswith(library) for name in names())
        for library in ("torchvision", "timm", "transformers")
    }
    assert count["torchvision"] >= 25 and count["timm"] >= 25 and count["transformers"] >= 12
