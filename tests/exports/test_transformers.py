"""Transformers models: an ordinary config where one can say the widths, demp's own spec elsewhere."""

import json

import pytest
import torch
from torch.testing import assert_close

import demp
import killing
from demp.exports import transformers_folder
from demp.train.models import build
from leaving import SMALL, bart, bert, cut, first, llama, tied_bert, tokens, transformers


@pytest.mark.parametrize(
    ("make", "losses", "widths"),
    [
        (bert, (5, 5), {"intermediate_size": 19}),
        (tied_bert, (5, 5), {"intermediate_size": 19}),
        (llama, (4, 4), {"intermediate_size": 20}),
        (bart, (5, 5, 3, 3), {"encoder_ffn_dim": 19, "decoder_ffn_dim": 21}),
        (bert, (0, 0), {"intermediate_size": 24}),
    ],
)
def test_layers_that_shrank_alike_get_an_ordinary_config(make, losses, widths, tmp_path, capfd):
    inputs = tokens()
    model = cut(make(), inputs, *losses)
    config = model.config.to_dict()
    capfd.readouterr()
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert capfd.readouterr() == ("", "")
    assert (report.loads_with, report.model) == ("transformers", type(model).__name__)
    assert report.notes == ("an ordinary transformers folder: config.json says the widths",)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in widths} == widths
    assert not (tmp_path / "out" / "architecture.json").exists()
    with transformers_folder.silent():
        loaded = type(model).from_pretrained(tmp_path / "out")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert_close(first(loaded.eval()(**inputs)), first(model.eval()(**inputs)))
    assert model.config.to_dict() == config
    assert f"{type(model).__name__}.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


HEADED = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral"])
def test_heads_that_went_everywhere_are_in_the_config(family, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**HEADED, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model, inputs = getattr(transformers, f"{family}ForCausalLM")(config).double().eval(), tokens()
    graph = demp.trace(model, inputs)
    dead = {layer.name: [i] for i, layer in enumerate(x for x in graph.layers if x.activation == "attention")}
    killing.kill(model, graph, dead)
    with torch.no_grad():
        expected = model(**inputs).logits
        written = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=False)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 2
    with torch.no_grad():
        assert float((model(**inputs).logits - expected).abs().max()) < 1e-10
    for choice in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False, **choice), written)
    assert len(model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=3)) == len(written)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "transformers"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    fields = [getattr(loaded.config, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")]
    assert fields == [2, 1, 6]
    with torch.no_grad():
        assert float((loaded(**inputs).logits - expected).abs().max()) < 1e-10


def cut_stream(family: str, channels: list[int]):
    """A small language model whose embedding lost channels, its inputs, and its outputs before."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**HEADED, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model, inputs = getattr(transformers, f"{family}ForCausalLM")(config).eval(), tokens()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.normal_(1.0, 0.3)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor[channels] = 0
        model.get_input_embeddings().weight[:, channels] = 0
        expected = model(**inputs).logits
    report = demp.cut(model, {"model.stream": channels}, example_inputs=inputs, streams=True)
    assert report.removed == len(channels)
    return model, inputs, expected


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_an_embedding_that_lost_channels_is_in_the_config(family, tmp_path):
    model, inputs, expected = cut_stream(family, [3, 5, 6, 9])
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "transformers", report.notes
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (loaded.config.hidden_size, loaded.config.num_attention_heads) == (12, 4)
    assert loaded.config.rms_norm_eps == pytest.approx(model.config.rms_norm_eps * 16 / 12)
    with torch.no_grad():
        assert_close(loaded(**inputs).logits, expected)
    written = [m.generate(**inputs, max_new_tokens=6, do_sample=False) for m in (model, loaded)]
    assert torch.equal(*written)


@pytest.mark.parametrize(
    ("family", "channels", "why"),
    [
        ("Gemma", [3, 5, 6, 9], "a GemmaForCausalLM of these widths computes otherwise"),  # the root of its width
        ("Qwen3", [3, 5, 6, 9], "its norms need several eps, and a config of Qwen3ForCausalLM has one"),
        ("Llama", [3, 5, 6], "transformers refuses a config of these widths"),  # 13 channels, 4 heads
    ],
)
def test_an_embedding_that_no_config_can_say_keeps_the_spec(family, channels, why, tmp_path):
    model, inputs, expected = cut_stream(family, channels)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "demp.load" and why in report.notes[0]
    assert not (tmp_path / "out" / "config.json").exists()
    if family == "Gemma":  # scales that count from one
        with torch.no_grad():
            assert_close(demp.plain(model, inputs)(**inputs).logits, expected)


@pytest.mark.parametrize(("make", "losses"), [(bert, (5, 4)), (bert, (5, 0)), (llama, (4, 7)), (tied_bert, (1, 2))])
def test_layers_that_differ_keep_the_spec_and_load_with_the_constructor(make, losses, tmp_path):
    inputs = tokens()
    model = cut(make(), inputs, *losses)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs, build=make)
    assert report.loads_with == "demp.load"
    assert report.notes == (
        f"no config of transformers describes this {type(model).__name__} as it is now: "
        "its folder loads with demp.load",
    )
    assert not (tmp_path / "out" / "config.json").exists()
    loaded = demp.load(make, tmp_path / "out")
    assert_close(first(loaded.eval()(**inputs)), first(model.eval()(**inputs)))


def test_a_class_of_its_own_keeps_the_spec(tmp_path):
    class Own(transformers.BertForSequenceClassification):
        pass

    inputs = tokens()
    torch.manual_seed(0)
    model = cut(Own(transformers.BertConfig(**SMALL, hidden_act="relu")).eval(), inputs, 5, 5)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.notes == ("Own is a class of its own: its folder loads with demp.load",)


def test_a_cut_that_no_field_can_say_keeps_the_spec(tmp_path):
    inputs = tokens()
    model = bert()
    graph = demp.trace(model, inputs)
    (pooler,) = [layer.name for layer in graph.layers if "pooler" in layer.name]
    killing.kill(model, graph, {pooler: [1, 4]}, 0.0)
    assert demp.cut(model, {pooler: [1, 4]}, example_inputs=inputs).removed == 2
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs, build=bert)
    assert report.loads_with == "demp.load" and "as it is now" in report.notes[0]


def test_a_module_put_in_by_hand_keeps_the_spec(tmp_path):
    def make():
        model = bert()
        for layer in model.bert.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.LeakyReLU(0.0)
        return model

    inputs = tokens()
    report = demp.export(make(), tmp_path / "out", to="safetensors", example_inputs=inputs, build=make)
    assert report.loads_with == "demp.load" and "as it is now" in report.notes[0]


def test_settings_of_generation_stay(tmp_path):
    inputs = tokens()
    model = cut(llama(), inputs, 4, 4)
    model.generation_config.max_new_tokens = 7
    demp.export(model, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_a_width_that_the_config_leaves_open(tmp_path):
    """GPT-J without ``n_inner`` takes four times its stream; cut through a wrapper, it bears no record either."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = transformers.GPTJConfig(
                n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, rotary_dim=4, bos_token_id=0,
                eos_token_id=1, activation_function="relu",
            )  # fmt: skip
            self.inner = transformers.GPTJForCausalLM(config)

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids).logits

    inputs = {"input_ids": tokens()["input_ids"]}
    wrapped = cut(Wrapped().eval(), inputs, 5, 5)
    report = demp.export(wrapped.inner, tmp_path / "out", to="safetensors", example_inputs=inputs)
    assert report.loads_with == "transformers"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_inner"] == 59


def test_the_trainers_image_classifier_leaves_its_wrapper(tmp_path):
    sizes = {key: value for key, value in SMALL.items() if key not in ("vocab_size", "max_position_embeddings")}
    options = {**sizes, "patch_size": 4, "hidden_act": "relu"}
    model = build("transformers:vit", num_classes=3, in_channels=1, image_size=8, **options).eval()
    x = torch.randn(4, 1, 8, 8)
    cut(model, (x,), 5, 5)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=(x,))
    assert (report.loads_with, report.model) == ("transformers", "ViTForImageClassification")
    with transformers_folder.silent():
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.intermediate_size == 19
    assert_close(loaded(pixel_values=x).logits, model(x))


@pytest.mark.slow
def test_a_cache_in_the_outputs_is_left_out_and_named(tmp_path):
    inputs = tokens()
    model = cut(llama(), inputs, 4, 7)
    report = demp.export(model, tmp_path / "out", to="torch-export", example_inputs=inputs)
    assert report.notes == ("left out of the outputs: past_key_values (DynamicCache)",)
    more = tokens(5)
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(**more)
    assert_close(found["logits"], model(**more).logits)
