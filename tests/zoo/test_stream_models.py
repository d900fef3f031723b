"""The embedding width of language models: it may go where norms read it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import killing
from demp.surgery import record_of
from exactly import trained
from shim import install_torchvision_shim

install_torchvision_shim()

import transformers  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from architectures import enliven, make  # noqa: E402
from language_models import GATED, from_transformers, words  # noqa: E402

STREAM = "model.stream"


class Wide(LlamaRMSNorm):
    """Llama's own norm computes in float32, whatever the model is in; this one does not."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def llama(tied: bool) -> Any:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": tied}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**GATED, **heads})).double().eval()
    for module in model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = Wide
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_llama_loses_channels_of_its_embedding_twice(tied: bool):
    model = llama(tied)
    inputs = words(model, "llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for silent, left in (([1, 4, 5], 13), ([0, 2], 11)):
        model(**inputs).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        graph = demp.trace(model, inputs, streams=True)
        assert {layer.activation for layer in graph.layers} == {"attention", "silu", "stream"}
        assert not {layer.name for layer in graph.layers} & graph.refused_layers()
        killing.kill(model, graph, {STREAM: silent})
        before, in_training = comparing.outputs(model, inputs), trained(model, inputs)
        written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        report = demp.cut(model, {STREAM: silent}, example_inputs=inputs, graph=graph, optimizer=optimizer)
        assert report.removed == len(silent)
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(in_training, trained(model, inputs)) < 1e-10
        assert model.model.embed_tokens.weight.shape[1] == left
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        for choice in ({"use_cache": False}, {"use_cache": True}):
            assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False, **choice), written)
    for p in model.parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape
    record = record_of(model)
    assert record is not None
    assert record.kept["model.norm.weight", 0].tolist() == [2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_models_as_they_come(name: str):
    torch.manual_seed(0)
    model, inputs = from_transformers(name)
    graph = demp.trace(model, inputs, streams=True)
    killing.kill(model, graph, {STREAM: [3, 9]})
    before = comparing.outputs(model, inputs)
    assert demp.cut(model, {STREAM: [3, 9]}, example_inputs=inputs, graph=graph).removed == 2
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-6


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_blocks_that_are_checkpointed_have_the_gradients_of_plain_ones():
    plain = llama(tied=False)
    inputs, found = words(plain, "llama"), []
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        graph = demp.trace(model.train(), inputs, streams=True)
        killing.kill(model, graph, {STREAM: [3, 9]})
        assert demp.cut(model, {STREAM: [3, 9]}, example_inputs=inputs, graph=graph).removed == 2
        model(**inputs).logits.square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["gpt2", "bert", "bloom"])
def test_layer_norms_lose_channels_of_their_stream_twice(name: str):
    torch.manual_seed(0)
    model, inputs = from_transformers(name)
    model = model.double().eval()
    stream = "bert.stream" if name == "bert" else "transformer.stream"
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for seed in range(2):
        graph = demp.trace(model, inputs, streams=True)
        assert bool(graph.layer(stream).removable.all())
        dead = killing.killed(model, graph, 0.3, seed, low=0.0)
        before, in_training = comparing.outputs(model, inputs), trained(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert report.removed == sum(map(len, dead.values())) and stream in dead
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(in_training, trained(model, inputs)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["transformers/opt", "transformers/falcon", "transformers/gpt_neo", "transformers/gpt_neox", "transformers/electra",
     "timm/beit_base_patch16_224", "timm/convnextv2_atto", "timm/edgenext_xx_small", "timm/efficientvit_b0",
     "timm/mobilevit_xxs", "timm/pit_ti_224", "timm/pvt_v2_b0", "timm/vit_tiny_patch16_224"],
)  # fmt: skip
def test_streams_of_the_zoo(name: str):
    model, inputs = enliven(*make(name))
    for seed in range(2):
        graph = demp.trace(model, inputs, streams=True)
        dead = killing.killed(model, graph, 0.3, seed, low=0.0)
        assert any(graph.layer(layer).activation == "stream" for layer in dead)
        before = comparing.outputs(model, inputs)
        demp.cut(model, dead, example_inputs=inputs, graph=graph)
        scale = max(float(out.abs().max()) for out in before)
        assert comparing.gap(before, comparing.outputs(model, inputs)) <= 1e-10 * scale
