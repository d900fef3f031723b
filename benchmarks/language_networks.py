"""The language models of benchmarks/language.py: GPT-2's and Llama's form, sizes that fit a budget, generation."""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import demp
from common import Ratio, in_pairs
from demp.budgets import Meter, least, sizes_of
from demp.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
importlib.import_module("shim").install_torchvision_shim()  # transformers imports torchvision where it is installed
sys.path.pop(0)
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

NO_SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GENERATION_BATCHES = (1, 8)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    hidden: int = 512
    """Neurons of the MLP of each layer."""
    context: int = 128
    """Tokens of one sequence."""
    words: int = 512
    """Tokens of the vocabulary."""
    head: int = 32
    """Entries of one head; in GPT-2's form width / heads."""

    def example(self) -> dict[str, Tensor]:
        """Inputs of one forward: one sequence of the whole context."""
        return {"input_ids": torch.arange(self.context)[None] % self.words}


def gpt2(sizes: Sizes) -> GPT2LMHeadModel:
    """GPT-2's form; its heads share the width, so that a head less makes the stream narrower."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes.words,
            n_positions=sizes.context,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_inner=sizes.hidden,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **NO_SPECIAL_TOKENS,
        )
    )


def llama(sizes: Sizes) -> LlamaForCausalLM:
    """Llama's form: RMSNorm, rotary positions, a gated MLP."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.words,
            max_position_embeddings=sizes.context,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            head_dim=sizes.head,
            intermediate_size=sizes.hidden,
            **NO_SPECIAL_TOKENS,
        )
    )


FORMS: dict[str, Callable[[Sizes], nn.Module]] = {"gpt2": gpt2, "llama": llama}


@cache
def flops_of(form: str, sizes: Sizes) -> int:
    """FLOPs of one forward of one sequence, by demp's counter."""
    return demp.cost(FORMS[form](sizes), sizes.example()).flops


def narrow(form: str, sizes: Sizes, share: float) -> Sizes:
    """The sizes of a narrower model with at most this share of the FLOPs: MLPs, and heads where those are too little.

    FLOPs are a straight line in the width of the MLPs.

    Raises:
        UsageError: one head and one neuron per layer are too much.
    """
    limit = share * flops_of(form, sizes)
    for heads in range(sizes.heads, 0, -1):
        fewer = replace(sizes, heads=heads, width=heads * sizes.head if form == "gpt2" else sizes.width)
        one, two = (flops_of(form, replace(fewer, hidden=hidden)) for hidden in (1, 2))
        if one <= limit:
            return replace(fewer, hidden=min(sizes.hidden, 1 + math.floor((limit - one) / (two - one))))
    raise UsageError(f"no {form} of this depth has {share:g} of the FLOPs; raise the budget")


def thin(form: str, sizes: Sizes, share: float) -> Sizes:
    """The sizes of a model that is narrower everywhere, embedding included, with at most this share of the FLOPs.

    The MLPs are as narrow as the embedding, or a little wider where the limit allows: widths go by two entries a head.

    Raises:
        UsageError: two entries a head are too much.
    """
    limit = share * flops_of(form, sizes)
    for head in range(sizes.width // sizes.heads, 1, -2):
        width = head * sizes.heads
        fewer = replace(sizes, width=width, head=head, hidden=sizes.hidden * width // sizes.width)
        now, more = (flops_of(form, replace(fewer, hidden=fewer.hidden + extra)) for extra in (0, 1))
        if now <= limit:
            return replace(fewer, hidden=fewer.hidden + math.floor((limit - now) / (more - now)))
    raise UsageError(f"no {form} of this depth has {share:g} of the FLOPs; raise the budget")


SMALLER: dict[str, Callable[[str, Sizes, float], Sizes]] = {"narrow": narrow, "thin": thin}
"""Sizes of what is trained from scratch in place of a dense model that loses neurons."""


@cache
def lowest_share(form: str, sizes: Sizes) -> float:
    """The least share of the FLOPs that demp can reach by what it removes of this model."""
    model = FORMS[form](sizes)
    meter = Meter(demp.trace(model, sizes.example()), sizes_of(model))
    return meter.shares({"flops": 0.0}, least(meter, ("flops",), demp.Limits()))["flops"]


def reachable(form: str, sizes: Sizes, share: float) -> float:
    """The share of the FLOPs to aim at: this one, or the least in hundredths that demp can reach."""
    lowest = lowest_share(form, sizes)
    if share >= lowest:
        return share
    taken = math.ceil(100 * lowest) / 100
    why = f"since what demp removes here leaves at least {lowest:.3f}"
    print(f"{form}: {share:g} of the FLOPs cannot be reached, {why}; {taken:g} is taken", flush=True)
    return taken


def generate(model: Any, prompt: Tensor, length: int, *, use_cache: bool = True) -> Tensor:
    """Prompt and continuation up to ``length`` tokens, each the likeliest."""
    model.eval()
    asked = {"max_length": length, "do_sample": False, "use_cache": use_cache}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)


@torch.no_grad()
def held_by(model: nn.Module, tokens: Tensor) -> dict[str, int]:
    """Entries of the parameters, and bytes of the keys and values that are kept of ``tokens``."""
    kept = model.eval()(tokens, use_cache=True).past_key_values
    tensors = [tensor for layer in kept.layers for tensor in (layer.keys, layer.values)]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cache_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def generation_times(model: nn.Module, dense: nn.Module, prompt: Tensor, length: int, pairs: int) -> dict[str, Any]:
    """Tokens per second of generation with a cache, and over the dense model's in turns, by batch size."""
    found = {}
    for batch in GENERATION_BATCHES:
        given = prompt[:batch]
        ratio = in_pairs(
            f"generation, batch {batch}",
            lambda given=given: generate(dense, given, length),
            lambda given=given: generate(model, given, length),
            pairs=pairs,
            warmup=1,
        )
        found |= speeds(f"generate_{batch}", ratio, batch * (length - given.shape[1]))
    return found


def speeds(name: str, ratio: Ratio, tokens: int) -> dict[str, Any]:
    """Tokens per second of both, medians, and the median over pairs of ours over the dense model's."""
    ours, plain = (tokens / Ratio(name, [1.0] * len(s), s).median for s in (ratio.ours, ratio.plain))
    return {
        f"{name}_tokens_per_s": ours,
        f"{name}_tokens_per_s_dense": plain,
        f"{name}_over_dense": 1 / ratio.median,
        f"{name}_pairs": ratio.ratios,
    }
