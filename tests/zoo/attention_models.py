"""Transformers of the library transformers with four heads, two keys where they share them, and what they are asked."""

from typing import Any

import torch
from torch import Tensor, nn

from shim import install_torchvision_shim

install_torchvision_shim()

import transformers  # noqa: E402

Question = dict[str, Tensor]

WORDS = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TINY = {**WORDS, **SIZES, "max_position_embeddings": 64}
SHARED = {**TINY, "num_key_value_heads": 2}
WIDE = {**SHARED, "head_dim": 8}
GPT = {**WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 24}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}
SEQUENCES = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 1,
             "max_position_embeddings": 64, "forced_eos_token_id": None}  # fmt: skip
RELATIVE = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0}  # fmt: skip
IMAGES = {**SIZES, "image_size": 32, "patch_size": 8}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
           "mlp_ratio": 2.0}  # fmt: skip
DINO = {**{key: value for key, value in IMAGES.items() if key != "intermediate_size"}, "mlp_ratio": 1}
OPT = {**{key: value for key, value in TINY.items() if key != "intermediate_size"}, "ffn_dim": 24}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}

# name -> model, configuration, options
CAUSAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "biogpt": ("BioGptForCausalLM", "BioGptConfig", TINY),
    "bloom": ("BloomForCausalLM", "BloomConfig", {**WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {**GPT, "rotary_dim": 4, "n_ctx": 64}),
    "cohere": ("CohereForCausalLM", "CohereConfig", SHARED),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**TINY, "multi_query": False, "ffn_hidden_size": 48}),
    "falcon alibi": ("FalconForCausalLM", "FalconConfig", {**TINY, "multi_query": False, "alibi": True}),
    "falcon mqa": ("FalconForCausalLM", "FalconConfig", {**TINY, "ffn_hidden_size": 48}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", WIDE),
    "gemma mqa": ("GemmaForCausalLM", "GemmaConfig", {**WIDE, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**WIDE, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**WIDE, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "glm": ("GlmForCausalLM", "GlmConfig", WIDE),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", {**GPT, "multi_query": True}),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {**WORDS, **NEO, "hidden_size": 32, "intermediate_size": 24}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TINY),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", SHARED),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SHARED, "attention_bias": True, "mlp_bias": True}),
    "llama eager": ("LlamaForCausalLM", "LlamaConfig", {**SHARED, "attn_implementation": "eager"}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**SHARED, "sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**SHARED, **EXPERTS}),
    "mpt": ("MptForCausalLM", "MptConfig", {**WORDS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", SHARED),
    "opt": ("OPTForCausalLM", "OPTConfig", {**OPT, "word_embed_proj_dim": 32}),
    "persimmon": ("PersimmonForCausalLM", "PersimmonConfig", TINY),
    "phi": ("PhiForCausalLM", "PhiConfig", TINY),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", SHARED),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**SHARED, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", WIDE),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**TINY, "num_key_value_heads": 4}),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", {**SHARED, "sliding_window": 4}),
}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", TINY),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 64},
    ),
    "esm": ("EsmForMaskedLM", "EsmConfig", {**TINY, "position_embedding_type": "rotary"}),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**TINY, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", TINY),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", TINY),
}
VISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "beit": ("BeitForImageClassification", "BeitConfig", {**IMAGES, "use_relative_position_bias": True}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", IMAGES),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "swin": ("SwinForImageClassification", "SwinConfig", WINDOWS),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGES),
}
TRANSLATORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", "BartConfig", {**WORDS, **SEQUENCES}),
    "m2m": ("M2M100ForConditionalGeneration", "M2M100Config", {**WORDS, **SEQUENCES}),
    "marian": ("MarianMTModel", "MarianConfig", {**WORDS, **SEQUENCES}),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", RELATIVE),
    "t5": ("T5ForConditionalGeneration", "T5Config", RELATIVE),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**WORDS, **SEQUENCES, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64},
    ),
}
FAMILIES = {**CAUSAL, **ENCODERS, **VISION, **TRANSLATORS}
STAYING = ("bloom", "falcon alibi", "falcon mqa", "mpt", "olmo2")
"""Slopes by the number of the head (ALiBi), query, key and value by an index, a norm over all heads: they stay."""


@torch.no_grad()
def made(name: str) -> Any:
    """The model in double precision and evaluation mode, without anything random, and with biases that matter."""
    kind, configuration, options = FAMILIES[name]
    config = getattr(transformers, configuration)(**options)
    for field, value in vars(config).items():
        if "drop" in field and isinstance(value, float):
            setattr(config, field, 0.0)
    config._experts_implementation = "eager"  # the fused one knows no double precision and only widths of 16 bytes
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif parameter.std() < 0.1:
            parameter.mul_(10.0)
    return model


def tokens(count: int, length: int, seed: int = 0) -> Tensor:
    """Words, none of them special."""
    return torch.randint(3, 40, (count, length), generator=torch.Generator().manual_seed(seed))


def padded(words: Tensor, *, left: bool) -> Question:
    """Words of which the first sentence is shorter, padded on one side."""
    mask = torch.ones_like(words)
    mask[0, slice(None, 3) if left else slice(-3, None)] = 0
    return {"input_ids": words, "attention_mask": mask}


def questions(name: str) -> list[Question]:
    """What the model is called with: first what it is traced on, then other lengths, and with padding."""
    pictures = [torch.rand(count, 3, 32, 32, dtype=torch.float64) for count in (2, 3)]
    if name in VISION:
        return [{"pixel_values": images} for images in pictures]
    if name in CAUSAL:
        words = tokens(3, 13)
        plain = {"input_ids": tokens(2, 9)}
        return [plain, {"input_ids": words}, padded(words, left=True), padded(words, left=False)]
    asked = [padded(tokens(3, length), left=False) for length in (9, 12)]
    if name == "whisper":
        sounds = [torch.rand(count, 8, 32, dtype=torch.float64) for count in (2, 3)]
        asked = [{"input_features": sound} for sound in sounds]
    if name in TRANSLATORS:
        asked = [{**one, "decoder_input_ids": tokens(len(next(iter(one.values()))), 6)} for one in asked]
    return asked
