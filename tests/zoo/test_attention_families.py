"""Heads and MLP neurons of many families of transformers go exactly: in both modes, masked, with caches, twice over."""

import copy
from typing import Any

import pytest
import torch

import comparing
import demp
import killing
from attention_models import CAUSAL, FAMILIES, STAYING, TRANSLATORS, Question, made, questions
from demp.graph import NeuronGraph
from thinning import mostly_slow

QUICK = ("gemma mqa", "mistral", "t5", "vit")
SATURATED = (
    "bart", "bert", "biogpt", "dinov2", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mpnet", "opt",
    "persimmon", "phi", "roberta", "stablelm", "starcoder2", "swin", "vit",
)  # fmt: skip
"""Families whose readers of heads and neurons have a bias that takes a constant."""
CACHES: list[dict[str, Any]] = [{"use_cache": False}, {}, {"cache_implementation": "static"}, {"num_beams": 3}]


def heads_of(graph: NeuronGraph) -> list[Any]:
    """The layers of attention with more than one head that may go."""
    return [layer for layer in graph.layers if layer.activation == "attention" and int(layer.removable.sum()) > 1]


@torch.no_grad()
def silenced(model: Any, graph: NeuronGraph, seed: int) -> dict[str, list[int]]:
    """Dead neurons, at least one head of each layer of attention among them, some of which live but are not read."""
    dead = killing.killed(model, graph, 0.35, seed, low=0.0)
    alive = killing.live_anyway(graph)
    for layer in heads_of(graph):
        if layer.name not in dead:
            dead[layer.name] = [seed % layer.width]
            killing.kill(model, graph, {layer.name: dead[layer.name]}, low=0.0)
    dying = killing.classes_of(graph, dead) & alive
    for read in graph.reads:
        if read.weight in graph.shapes:
            positions = dying[read.classes].nonzero().flatten()
            comparing.tensors_of(model)[read.weight].index_fill_(read.weight_axis, positions, 0.0)
    return dead


@torch.no_grad()
def gap(ours: Any, theirs: Any, asked: Question) -> float:
    """Largest difference of what comes out where words are, in this mode."""
    a, b = ours(**asked), theirs(**asked)
    found = 0.0
    for name in a:
        if isinstance(a[name], torch.Tensor):
            difference = (a[name] - b[name]).abs()
            mask = asked.get("attention_mask")
            if mask is not None and "decoder_input_ids" not in asked:
                difference = difference[mask.bool()]
            found = max(found, float(difference.max()))
    return found


def same(ours: Any, theirs: Any, asked: list[Question]) -> bool:
    """Do both give the same on all that they are asked, in training and in evaluation?"""
    gaps = [
        gap(ours.train(mode), theirs.train(mode), question) for mode in (True, False) for question in asked
    ]  # evaluation last
    return max(gaps) < 1e-10


def written(model: Any, asked: Question, **choice: Any) -> torch.Tensor:
    """What it goes on with."""
    start = {name: value for name, value in asked.items() if name != "decoder_input_ids"}
    return model.generate(**start, max_new_tokens=6, min_new_tokens=6, do_sample=False, **choice)


def compare(name: str, model: Any, dense: Any, *, writing: bool = True) -> None:
    """Both give the same, and go on with the same words whatever the cache."""
    asked = questions(name)
    assert same(model, dense, asked)
    if writing and name in (*CAUSAL, *TRANSLATORS):
        start = asked[2 if name in CAUSAL else 0]
        for choice in CACHES:
            if name == "falcon alibi" and "cache_implementation" in choice:  # not even the dense one
                continue
            assert torch.equal(written(model, start, **choice), written(dense, start, **choice)), choice


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, QUICK))
def test_heads_and_neurons_go_twice(name: str):
    model, asked = made(name), questions(name)
    for seed in range(2):
        graph = demp.trace(model, asked[0])
        assert bool(heads_of(graph)) == (name not in STAYING) or seed
        dead = silenced(model, graph, seed)
        dense = copy.deepcopy(model)
        alive = bool((killing.classes_of(graph, dead) & killing.live_anyway(graph)).any())
        report = demp.cut(model, dead, example_inputs=asked[0], graph=graph, exact=not alive)
        assert report.removed == sum(map(len, dead.values())) > 0
        assert not report.drift or report.drift < 1e-10
        compare(name, model, dense, writing=seed == 1)


@pytest.mark.parametrize("name", mostly_slow(SATURATED, ("bert", "gpt2")))
def test_constant_heads_and_neurons_leave_with_their_constants(name: str):
    model, asked = made(name), questions(name)
    graph = demp.trace(model, asked[0])
    offered = [layer for layer in graph.layers if int(layer.removable.sum()) > 1]
    chosen = {layer.name: [0] if layer.activation == "attention" else [1, 3] for layer in offered}
    classes = killing.classes_of(graph, chosen)
    readers = {(read.weight, read.weight_axis) for read in graph.reads}
    tensors = comparing.tensors_of(model)
    with torch.no_grad():  # their biases stay, what they read of the input does not count
        for slot in graph.slots:
            tensor = tensors[slot.tensor]
            if (slot.tensor, slot.axis) not in readers and tensor.dim() > 1 and "relative" not in slot.tensor:
                tensor.index_fill_(slot.axis, classes[slot.classes].nonzero().flatten(), 0.0)
    dense = copy.deepcopy(model)
    report = demp.cut(model, chosen, example_inputs=asked[0], graph=graph, constants=True)
    assert report.removed == sum(map(len, chosen.values())) and not report.held
    assert report.drift is not None and report.drift < 1e-10
    compare(name, model, dense)


def test_enough_families():
    assert len({kind for kind, *_ in FAMILIES.values()}) >= 40
