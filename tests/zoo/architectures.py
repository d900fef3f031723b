"""Architectures of other libraries with random weights and small inputs, each by one name."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from shim import install_torchvision_shim

install_torchvision_shim()

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

Made = tuple[nn.Module, Any]

# name -> image size and options of the builder
TORCHVISION: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "convnext_tiny": (32, {}),
    "densenet121": (32, {}),
    "efficientnet_b0": (32, {}),
    "efficientnet_v2_s": (32, {}),
    "googlenet": (64, {"init_weights": False}),
    "inception_v3": (160, {"init_weights": False}),
    "mnasnet0_5": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_large": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "regnet_x_400mf": (32, {}),
    "regnet_y_400mf": (32, {}),
    "resnet18": (32, {}),
    "resnet50": (32, {}),
    "resnext50_32x4d": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "squeezenet1_0": (48, {}),
    "squeezenet1_1": (48, {}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "vgg11": (32, {}),
    "vgg16_bn": (32, {}),
    "vit_b_32": (64, {"image_size": 64}),
    "wide_resnet50_2": (32, {}),
}
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")

TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    "cait_xxs24_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    "coatnet_0_224": (64, {"img_size": 64}),
    "convit_tiny": (32, {"img_size": 32, "depth": 4}),
    "convnextv2_atto": (32, {}),
    "crossvit_9_240": (240, {}),
    "cspresnet50": (32, {}),
    "darknet53": (32, {}),
    "davit_tiny": (64, {}),
    "dla34": (64, {}),
    "dpn68": (32, {}),
    "ecaresnet26t": (32, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientvit_b0": (32, {}),
    "ese_vovnet19b_dw": (32, {}),
    "fastvit_t8": (64, {}),
    "fbnetc_100": (32, {}),
    "focalnet_tiny_srf": (64, {}),
    "ghostnet_100": (32, {}),
    "gmlp_s16_224": (32, {"img_size": 32}),
    "hardcorenas_a": (32, {}),
    "hrnet_w18_small": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_v4": (80, {}),
    "lcnet_050": (32, {}),
    "levit_128s": (224, {}),
    "mambaout_femto": (32, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "mixnet_s": (32, {}),
    "mobilenetv4_conv_small": (32, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "nf_resnet26": (32, {}),
    "pit_ti_224": (224, {}),
    "poolformer_s12": (64, {}),
    "pvt_v2_b0": (64, {}),
    "repvgg_a0": (32, {}),
    "res2net50_26w_4s": (32, {}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "resnest14d": (32, {}),
    "resnetv2_50": (32, {}),
    "rexnet_100": (32, {}),
    "selecsls42b": (64, {}),
    "seresnet18": (32, {}),
    "skresnet18": (32, {}),
    "starnet_s1": (32, {}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64}),
    "tiny_vit_5m_224": (224, {}),
    "tinynet_e": (32, {}),
    "twins_pcpvt_small": (64, {"img_size": 64}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
    "visformer_tiny": (64, {"img_size": 64}),
    "xception41": (64, {}),
    "xcit_nano_12_p16_224": (32, {"img_size": 32}),
}

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


def names() -> list[str]:
    """Every architecture, by library."""
    found = [f"torchvision/{name}" for name in (*TORCHVISION, *SEGMENTATION, *VIDEO)]
    return found + [f"timm/{name}" for name in TIMM] + [f"transformers/{name}" for name in TRANSFORMERS]


def make(name: str) -> Made:
    """The model and example inputs, on the device that torch makes tensors on."""
    library, _, name = name.partition("/")
    builders: dict[str, Callable[[str], Made]] = {
        "torchvision": from_torchvision,
        "timm": from_timm,
        "transformers": from_transformers,
    }
    model, inputs = builders[library](name)
    return model.eval(), inputs


def from_torchvision(name: str) -> Made:
    models = torchvision.models
    if name in SEGMENTATION:
        options = {"weights": None, "weights_backbone": None, "num_classes": 5}
        return getattr(models.segmentation, name)(**options), (torch.rand(2, 3, 32, 32),)
    if name in VIDEO:
        return getattr(models.video, name)(weights=None, num_classes=7), (torch.rand(2, 3, 4, 16, 16),)
    size, options = TORCHVISION[name]
    return getattr(models, name)(weights=None, num_classes=7, **options), (torch.rand(2, 3, size, size),)


def from_timm(name: str) -> Made:
    size, options = TIMM[name]
    return timm.create_model(name, pretrained=False, num_classes=7, **options), (torch.rand(2, 3, size, size),)


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


@torch.no_grad()
def enliven(model: nn.Module, inputs: Any) -> Made:
    """Double precision, and as after some training: nothing is constant, and norms have seen the inputs."""
    model = model.double()
    inputs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            if parameter.dim() > 1:  # a head that starts at zero
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.uniform_(0.2, 0.6, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    model.eval()
    model(**inputs) if isinstance(inputs, dict) else model(*inputs)  # some remember shapes in buffers
    return model, inputs
