"""``F.multi_head_attention_forward`` for the heads that are left: torch's own asks for as many as there were."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SIGNATURE = inspect.signature(F.multi_head_attention_forward)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def unfit(options: Mapping[str, Any]) -> str:
    """Why a call cannot be carried out for fewer heads; empty if it can."""
    for name, what in (
        ("bias_k", "bias_k and bias_v"),
        ("add_zero_attn", "add_zero_attn"),
        ("static_k", "static keys"),
        ("static_v", "static values"),
        ("use_separate_proj_weight", "weights of different widths for query, key and value"),
    ):
        if options[name] is not None and options[name] is not False:
            return what
    mask = options["attn_mask"]
    return "a mask of its own for each head" if isinstance(mask, Tensor) and mask.dim() == 3 else ""


def attended(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Outputs and, if asked for, weights of attention, by as many heads as the weights at hand make."""
    out, shares = by_head(args, kwargs)
    return out, averaged(shares, args, kwargs)


def averaged(shares: Tensor | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Weights of attention as the call asks for them, from those of each head."""
    o = given(args, kwargs)
    if shares is None:
        return None
    shares = shares.mean(1) if o["average_attn_weights"] else shares
    return shares if o["query"].dim() == 3 else shares.squeeze(0)


def by_head(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Outputs, and weights of attention for each head: (batch, heads, positions, positions).

    Tensors are (positions, batch, channels) or (positions, channels), as in ``F.multi_head_attention_forward``.
    """
    o = given(args, kwargs)
    size = o["embed_dim_to_check"] // o["num_heads"]
    batched = o["query"].dim() == 3
    inputs = [t if batched else t.unsqueeze(1) for t in (o["query"], o["key"], o["value"])]
    weight, bias = o["in_proj_weight"], o["in_proj_bias"]
    if o["query"] is o["key"] is o["value"]:
        made = F.linear(inputs[0], weight, bias).chunk(3, -1)
    else:
        biases = [None] * 3 if bias is None else bias.chunk(3)
        made = [F.linear(t, w, b) for t, w, b in zip(inputs, weight.chunk(3), biases, strict=True)]
    q, k, v = (torch.unflatten(t, 2, (-1, size)).permute(1, 2, 0, 3) for t in made)  # batch, heads, positions, channels
    padding = o["key_padding_mask"]
    mask = merged(o["attn_mask"], padding if batched or padding is None else padding.unsqueeze(0), q.dtype)
    dropout = o["dropout_p"] if o["training"] else 0.0
    shares = None
    if o["need_weights"]:
        scores = q @ k.transpose(-2, -1) / math.sqrt(size)
        shares = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        out = shares @ v
    else:
        causal = o["is_causal"] and mask is None
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), o["out_proj_weight"], o["out_proj_bias"])
    return out if batched else out.squeeze(1), shares


def merged(mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores: a mask of (positions, positions) and one of padded keys, (batch, positions)."""
    if padding is None:
        return None if mask is None else added(mask, dtype)
    rows = added(padding, dtype)[:, None, None, :]
    return rows if mask is None else rows + added(mask, dtype)


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add: minus infinity where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
