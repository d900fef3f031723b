"""Models of other libraries with random weights: read without arithmetic, cut exactly."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import comparing
import demp
import killing
import nets
from demp.graph.calls import model_calls
from shim import install_torchvision_shim
from thinning import mostly_slow

install_torchvision_shim()
torchvision = pytest.importorskip("torchvision.models")
transformers = pytest.importorskip("transformers")

TORCHVISION = {
    # name: (image size, neurons, removable, builder's options)
    "resnet50": (64, 22720, 22720, {}),
    "mobilenet_v3_large": (64, 13296, 13296, {}),
    "densenet121": (32, 41824, 41824, {}),
    "efficientnet_b0": (64, 19580, 19580, {}),
    "convnext_tiny": (32, 26496, 26496, {}),
    "swin_t": (32, 17802, 17802, {}),
    "shufflenet_v2_x0_5": (64, 2944, 2944, {}),
    "googlenet": (64, 7280, 6240, {"init_weights": False}),
    "squeezenet1_1": (64, 2951, 2944, {}),
    "regnet_y_400mf": (64, 6306, 6306, {}),
    "vgg11_bn": (64, 10944, 10944, {}),
    "vit_b_32": (64, 37008, 37008, {"image_size": 64}),
    "inception_v3": (96, 17216, 17216, {"init_weights": False}),
}
FAST = ("shufflenet_v2_x0_5",)
"""Residual networks, and those with gates, are in test_reference_models.py and in tests/zoo."""


@pytest.mark.parametrize("name", mostly_slow(TORCHVISION, FAST))
def test_torchvision(name):
    size, neurons, removable, options = TORCHVISION[name]
    model = getattr(torchvision, name)(weights=None, num_classes=7, **options).double().eval()
    for head in (module for module in model.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(head.weight, std=0.02)
    inputs = (torch.randn(2, 3, size, size, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    assert graph.vehicle == "meta"
    assert (graph.dense.neurons, sum(int(layer.removable.sum()) for layer in graph.layers)) == (neurons, removable)
    if name not in ("swin_t", "vit_b_32"):  # fused attention is counted another way
        with FlopCounterMode(display=False) as counter:
            before = comparing.outputs(model, inputs)
        assert graph.dense.flops() == counter.get_total_flops()
    dead = killing.killed(model, graph, 0.3, low=0.0)
    before = comparing.outputs(model, inputs)
    report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
    assert report.removed == sum(map(len, dead.values())) and not report.held
    scale = float(before[0].abs().max())
    assert scale > 0 and comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10 * scale
    if name == "googlenet":  # its auxiliary heads run in training only
        assert any("training forward" in refusal.reason for refusal in graph.refused)
        assert len(model.train()(*inputs)) == 3


def language_model(kind: str) -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "bert":
        config = transformers.BertConfig(**sizes, intermediate_size=24, max_position_embeddings=16)
        return transformers.BertModel(config)
    if kind == "gpt2":
        small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": 24}
        config = transformers.GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, use_cache=False, **small)
        return transformers.GPT2LMHeadModel(config)
    sizes |= {"num_key_value_heads": 1, "use_cache": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=24))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "attention mask"])
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_transformers(kind, masked):
    model, inputs = nets.settle(language_model(kind)), {"input_ids": torch.randint(0, 50, (2, 7))}
    if masked:
        inputs["attention_mask"] = torch.ones(2, 7, dtype=torch.long)
    for seed in range(2):
        graph = demp.trace(model, inputs)
        needs_values = masked or kind != "bert"  # the library looks into its masks and positions
        assert graph.vehicle == ("eager" if needs_values else "meta")
        hidden = [
            layer for layer in graph.layers if layer.producers and layer.reads and layer.activation != "attention"
        ]
        assert len(hidden) == 2 and all(layer.removable.all() and layer.coupled == () for layer in hidden)
        assert seed or [layer.width for layer in hidden] == [24, 24]
        heads = [layer for layer in graph.layers if layer.activation == "attention"]
        assert len(heads) == 2 and all(layer.removable.all() for layer in heads)  # llama: of the query alone
        dead = killing.killed(model, graph, 0.4, seed)
        before = comparing.outputs(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert report.removed == sum(map(len, dead.values())) > 0
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10


def test_gpt2_counts_its_width_in_an_attribute():
    model, inputs = nets.settle(language_model("gpt2")), {"input_ids": torch.randint(0, 50, (2, 7))}
    graph = demp.trace(model, inputs)
    assert [(layer.name, layer.activation) for layer in graph.layers] == [
        (f"transformer.h.{block}.{name}", kind)
        for block in range(2)
        for name, kind in (("attn.attention", "attention"), ("mlp.act", "composite"))
    ]
    dead = {"transformer.h.0.mlp.act": [1, 5], "transformer.h.1.mlp.act": [0, 23, 7]}
    killing.kill(model, graph, dead)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    assert [block.mlp.c_fc.nf for block in model.transformer.h] == [22, 21]


def test_heads_of_gpt2_leave_its_forward_as_it_is():
    """All of its views infer the number of heads, and the one split takes it from an attribute."""
    model, inputs = nets.settle(language_model("gpt2")), {"input_ids": torch.randint(0, 50, (2, 7))}
    graph = demp.trace(model, inputs)
    dead = {"transformer.h.0.attn.attention": [1]}
    killing.kill(model, graph, dead)
    before = comparing.outputs(model, inputs)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
    first, second = (block.attn for block in model.transformer.h)
    assert first.split_size == first.c_attn.nf // 3 == second.split_size * (1 - 1 / first.num_heads)
    assert not model_calls(model)


def image_model() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=16, patch_size=8))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "vit"])
def test_what_save_pretrained_wrote_loads_into_a_model_of_the_config(kind, tmp_path):
    """Other heads, neurons and channels of the stream gone in each block; tied weights are in the file once."""
    model, other = (nets.settle(image_model() if kind == "vit" else language_model(kind)).float() for _ in range(2))
    inputs = {"input_ids": torch.arange(14).view(2, 7)}
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)} if kind == "vit" else inputs
    graph = demp.trace(model, inputs, streams=True)
    dead = {layer.name: list(range(1 + n % 3))[: layer.width - 1] for n, layer in enumerate(graph.layers)}
    demp.cut(model, dead, example_inputs=inputs, graph=graph, exact=False)
    model.save_pretrained(tmp_path, save_original_format=False)
    report = demp.load_state_dict(other, load_file(tmp_path / "model.safetensors"), example_inputs=inputs)
    assert len(report.resized) > 20
    assert comparing.gap(comparing.outputs(model, inputs), comparing.outputs(other, inputs)) == 0.0
