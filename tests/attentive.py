"""Attention as people write it, between layer norms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, CHANNELS = 16, 4, 4
SPELLINGS = ("inferred", "numbered", "packed", "unbound", "literal", "unflattened")
"""How the channels become heads: with the size inferred, by an attribute, packed in one layer and chunked, unbound from
a view, with a number that follows no attribute, and by ``unflatten`` with the number of heads."""


class Attention(nn.Module):
    """Self-attention whose ``fused`` form is one operation."""

    def __init__(self, spelling: str = "inferred", *, fused: bool = True, bias: bool = True, groups: int = HEADS):
        super().__init__()
        self.spelling, self.fused, self.num_heads, self.groups = spelling, fused, HEADS, groups
        self.head_dim = CHANNELS
        own = {"bias": bias}
        if spelling in ("inferred", "numbered"):
            self.q = nn.Linear(WIDTH, HEADS * CHANNELS, **own)
            self.k, self.v = (nn.Linear(WIDTH, groups * CHANNELS, **own) for _ in range(2))
        else:
            self.qkv = nn.Linear(WIDTH, 3 * HEADS * CHANNELS, **own)
        self.out = nn.Linear(HEADS * CHANNELS, WIDTH, **own)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Query, key and value, each of (batch, heads, positions, channels)."""
        batch, length, width = x.shape
        if self.spelling == "unbound":
            packed = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
            return list(packed.permute(2, 0, 3, 1, 4).unbind(0))
        three = [self.q(x), self.k(x), self.v(x)] if self.spelling in ("inferred", "numbered") else None
        if self.spelling == "literal":
            three = list(self.qkv(x).split(width, dim=2))
            return [t.view(batch, length, self.num_heads, width // HEADS).transpose(1, 2) for t in three]
        three = list(self.qkv(x).chunk(3, -1)) if three is None else three
        if self.spelling == "unflattened":
            return [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in three]
        if self.spelling == "numbered":
            return [t.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2) for t in three]
        return [t.view(batch, length, -1, self.head_dim).transpose(1, 2) for t in three]

    def mask(self, scores: Tensor) -> Tensor:
        """What is added to the scores, if anything."""
        return torch.zeros(1, 1, *scores.shape[-2:], dtype=scores.dtype, device=scores.device)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.groups < HEADS)
        else:
            if self.groups < HEADS:
                k, v = (t.repeat_interleave(HEADS // self.groups, dim=1) for t in (k, v))
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            y = (scores + (self.mask(scores) if more is None else more)).softmax(-1) @ v
        y = y.transpose(1, 2)
        return self.out(y.reshape(x.shape) if self.spelling == "literal" else y.flatten(2))


class Gated(Attention):
    """Every head behind a factor that is no parameter: 0 is a head that is not there."""

    def __init__(self, spelling: str = "inferred") -> None:
        super().__init__(spelling)
        self.factors = torch.ones(HEADS, dtype=torch.float64)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out((y * self.factors[:, None, None]).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer's block without its second half; an MLP takes the stream away."""

    def __init__(self, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention() if attention is None else attention
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(x + self.attention(self.norm(x))))


def examples(length: int = 7) -> Tensor:
    return torch.randn(2, length, WIDTH, dtype=torch.float64)
