"""Configs that transformers would have to guess: one that it refuses is no answer, and no crash either."""

import pytest
import torch
from torch.testing import assert_close

import demp
import killing
from demp.exports import transformers_folder
from leaving import SMALL, seeded, tokens, transformers

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TINY = {**SMALL, **IDS, "hidden_size": 32, "num_attention_heads": 4}
FAMILIES = {
    "GPT2LMHeadModel": {
        **IDS, "vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 24,
    },
    "BertForMaskedLM": TINY,
    "FalconForCausalLM": {**TINY, "multi_query": False, "ffn_hidden_size": 48},
    "MixtralForCausalLM": {**TINY, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2},
    "Qwen3MoeForCausalLM": {
        **TINY, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 12, "num_experts": 3,
        "num_experts_per_tok": 2,
    },
    "Qwen2MoeForCausalLM": {
        **TINY, "num_key_value_heads": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20,
        "num_experts": 3, "num_experts_per_tok": 2,
    },
}  # fmt: skip


def made(family: str, kind: str, dead: list[int]):
    """A tiny model of this family whose layers of a kind ("attention", "mlp") all lost these neurons, and inputs."""
    prefix = family.partition("For")[0].partition("LMHead")[0]
    config = getattr(transformers, f"{prefix}Config")(**FAMILIES[family])
    model, inputs = seeded(getattr(transformers, family), config), {"input_ids": tokens()["input_ids"]}
    if "num_experts_per_tok" in FAMILIES[family]:
        model.set_experts_implementation("eager")
    graph = demp.trace(model, inputs)
    layers = [layer.name for layer in graph.layers if (layer.activation == "attention") == (kind == "attention")]
    going = dict.fromkeys(layers, dead)
    killing.kill(model, graph, going, 0.0)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert demp.cut(model, going, example_inputs=inputs, graph=graph).removed == len(layers) * len(dead) > 0
    return model, inputs, expected


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("GPT2LMHeadModel", "`embed_dim` must be divisible by num_heads"),
        ("BertForMaskedLM", "is not a multiple of the number of attention heads (3)"),
        ("FalconForCausalLM", "`hidden_size` must be divisible by num_heads"),
    ],
)
def test_heads_that_no_config_can_say_keep_the_spec(family, why, tmp_path):
    model, inputs, expected = made(family, "attention", [0])
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    (note,) = report.notes
    assert report.loads_with == "demp.load"
    assert note.startswith(f"no config of transformers describes this {family} as it is now")
    assert why in note and note in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "config.json").exists()
    loaded = demp.load(lambda: type(model)(model.config), tmp_path / "out")
    with torch.no_grad():
        assert_close(loaded.eval()(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("family", "kind", "dead", "field"),
    [
        ("MixtralForCausalLM", "attention", [0], "num_attention_heads"),
        ("MixtralForCausalLM", "mlp", [1, 2, 5], "intermediate_size"),
        ("Qwen3MoeForCausalLM", "mlp", [1, 2, 5], "moe_intermediate_size"),
        ("Qwen2MoeForCausalLM", "mlp", [1, 2, 5], "moe_intermediate_size"),
        ("Qwen2MoeForCausalLM", "mlp", [1, 2, 5], "shared_expert_intermediate_size"),
        ("FalconForCausalLM", "mlp", [1, 2, 5], "ffn_hidden_size"),
    ],
)
def test_widths_of_experts_are_in_the_config_and_the_note_says_how_they_are_computed(
    family, kind, dead, field, tmp_path
):
    model, inputs, expected = made(family, kind, dead)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "transformers", report.notes
    told = {"experts_implementation": "eager"} if family != "FalconForCausalLM" else {}
    options = "experts_implementation='eager'" if told else ""
    assert (options in report.notes[-1], report.options) == (True, options)
    arguments = f'".", {options}' if told else '"."'
    assert f"model = {family}.from_pretrained({arguments})" in (tmp_path / "out" / "README.md").read_text()
    with transformers_folder.silent():
        loaded = type(model).from_pretrained(tmp_path / "out", **told).eval()
    assert getattr(loaded.config, field) < getattr(model.config, field)
    with torch.no_grad():
        assert_close(loaded(**inputs).logits, expected)


def test_a_forward_that_fails_on_the_folder_keeps_the_spec(tmp_path, monkeypatch):
    model, inputs, _ = made("MixtralForCausalLM", "mlp", [1, 2, 5])
    read = transformers_folder.read

    def reading(model, folder):
        loaded = read(model, folder)
        loaded.set_experts_implementation("eager")
        loaded.model.layers[1].mlp.register_forward_pre_hook(lambda *_: torch.zeros(3) @ torch.zeros(2))
        return loaded

    monkeypatch.setattr(transformers_folder, "read", reading)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "demp.load"
    assert report.notes[0].startswith("a MixtralForCausalLM of these widths does not run (inconsistent tensor size")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.skipif(not hasattr(transformers, "Gemma3nTextConfig"), reason="needs Gemma3n")
def test_a_config_that_lists_a_width_for_every_layer_says_what_each_lost(tmp_path):
    config = transformers.Gemma3nTextConfig(
        **{**TINY, "intermediate_size": [24, 24]}, num_key_value_heads=2, head_dim=8, vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=8, num_kv_shared_layers=0, laurel_rank=4, layer_types=["full_attention"] * 2,
        activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=2,
    )  # fmt: skip
    model, inputs = seeded(transformers.Gemma3nForCausalLM, config), {"input_ids": tokens()["input_ids"]}
    graph = demp.trace(model, inputs)
    first, second = (f"model.layers.{i}.mlp.act_fn" for i in range(2))
    dead = {first: [3], second: [1, 2, 5]}
    killing.kill(model, graph, dead, 0.0)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "transformers", report.notes
    loaded = type(model).from_pretrained(tmp_path / "out").eval()
    assert loaded.config.intermediate_size == [23, 21]
    with torch.no_grad():
        assert_close(loaded(**inputs).logits, model(**inputs).logits)
