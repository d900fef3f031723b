"""Small models of the transformers library, and what they are called with."""

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Made = tuple[nn.Module, Any]

WORDS = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
STREAM = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**WORDS, **STREAM, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 16}
GATED["use_cache"] = False
PLAIN = {**WORDS, **STREAM, "intermediate_size": 24, "max_position_embeddings": 16}
GPT = {**WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": 24, "use_cache": False}
SEQUENCE = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "use_cache": False}  # fmt: skip

# name -> class of the model, class of its configuration, options
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "albert": ("AlbertModel", "AlbertConfig", {**PLAIN, "embedding_size": 8}),
    "bart": ("BartModel", "BartConfig", {**WORDS, **SEQUENCE, "max_position_embeddings": 16}),
    "bert": ("BertForMaskedLM", "BertConfig", PLAIN),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {**WORDS, "hidden_size": 16, "n_layer": 2, "n_head": 2, "use_cache": False},
    ),
    "clip": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        {**STREAM, "intermediate_size": 24, "image_size": 32, "patch_size": 16},
    ),
    "deberta": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**PLAIN, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {**WORDS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "electra": ("ElectraModel", "ElectraConfig", {**PLAIN, "embedding_size": 8}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**WORDS, **STREAM, "use_cache": False}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**GATED, "head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            **WORDS,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 16,
            "use_cache": False,
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**PLAIN, "use_cache": False}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GATED),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {**WORDS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "use_cache": False},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", GATED),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GATED, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            **WORDS,
            **STREAM,
            "ffn_dim": 24,
            "max_position_embeddings": 16,
            "word_embed_proj_dim": 16,
            "use_cache": False,
        },
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GATED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GATED),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **GATED,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
    ),
    "roberta": ("RobertaModel", "RobertaConfig", PLAIN),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 40,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "use_cache": False,
        },
    ),
    "vit": ("ViTModel", "ViTConfig", {**STREAM, "intermediate_size": 24, "image_size": 32, "patch_size": 16}),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {
            **STREAM,
            "intermediate_size": 24,
            "conv_dim": (8, 8, 8),
            "conv_stride": (4, 2, 2),
            "conv_kernel": (8, 3, 3),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "num_feat_extract_layers": 3,
        },
    ),
    "whisper": (
        "WhisperModel",
        "WhisperConfig",
        {
            **WORDS,
            **SEQUENCE,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
        },
    ),
}


def from_transformers(name: str) -> Made:
    kind, configuration, options = TRANSFORMERS[name]
    accepted = getattr(transformers, configuration)(**options)
    accepted._experts_implementation = "eager"  # the fused one knows no double precision and only widths of 16 bytes
    model = getattr(transformers, kind)(accepted)
    return model, words(model, name)


def words(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What a transformer is called with."""
    if name in ("clip", "vit"):
        return {"pixel_values": torch.rand(2, 3, 32, 32)}
    if name == "wav2vec2":
        return {"input_values": torch.rand(2, 400)}
    tokens = torch.randint(3, 40, (2, 7))
    if name == "whisper":
        return {"input_features": torch.rand(2, 8, 32), "decoder_input_ids": tokens}
    inputs = {"input_ids": tokens}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters and name != "bart":
        inputs["decoder_input_ids"] = tokens
    return inputs
