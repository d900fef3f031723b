"""One example that a model by name takes: an image, tokens, or sound."""

import inspect
from typing import Any

import torch
from torch import nn

TOKENS = 16
SAMPLES = 16000
"""A second of sound."""


def example_inputs(model: nn.Module, channels: int, image_size: int) -> Any:
    """One example that the model's forward takes: an image, or what a model of transformers says that it reads."""
    config: Any = getattr(model, "config", None)
    name = getattr(model, "main_input_name", "")
    if name == "input_ids":
        return tokens_for(model, config)
    bands = getattr(config, "num_mel_bins", None)
    if name == "input_features" and bands and hasattr(config, "max_source_positions"):
        return {name: torch.zeros(1, bands, 2 * config.max_source_positions)}
    if name == "input_values" and bands and hasattr(config, "max_length"):
        return {name: torch.zeros(1, config.max_length, bands)}
    if name == "input_values":
        return {name: torch.zeros(1, SAMPLES)}
    return (torch.zeros(1, channels, image_size, image_size),)


def tokens_for(model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
    """Tokens that end as the model's sentences do, and the same for its decoder if it has one."""
    tokens = torch.zeros(1, TOKENS, dtype=torch.long)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < (getattr(config, "vocab_size", None) or 0):
        tokens[:, -1] = end
    takes = inspect.signature(model.forward).parameters
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        return {"input_ids": tokens, "decoder_input_ids": tokens.clone()}
    return {"input_ids": tokens}
