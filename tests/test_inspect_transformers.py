"""`demp inspect transformers:NAME` knows what a model of that name reads."""

import json

import pytest

from demp.cli import main

pytest.importorskip("transformers")
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 40, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
WAVE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def inspected(name, options):
    """The exit code of the command on a model of transformers."""
    given = [part for key, value in options.items() for part in ("--option", f"{key}={value}")]
    return main(["inspect", f"transformers:{name}", *given, "--json"])


@pytest.mark.parametrize(
    ("name", "options", "neurons"),
    [
        ("t5", T5, 2 * 2 * 24),
        ("mt5", T5, 2 * 2 * 24),
        ("bart", BART, 2 * 2 * 24),
        ("m2m_100", BART, 2 * 2 * 24),
        ("whisper", {**BART, "vocab_size": 60000, "num_mel_bins": 8, "max_source_positions": 16}, 2 * 24),
        ("wav2vec2", WAVE, 2 * 24),
    ],
)
def test_a_model_is_shown_on_what_it_reads(name, options, neurons, capsys):
    assert inspected(name, options) == 0
    assert json.loads(capsys.readouterr().out)["removable"] >= neurons


def test_inputs_that_do_not_run_ask_for_the_option_of_the_command(capsys):
    assert main(["inspect", "mlp", "--input", "1,5:int64"]) == 1
    said = capsys.readouterr().err
    assert "--input SIZES:TYPE" in said and "example_inputs as a tuple" not in said
