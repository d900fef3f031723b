"""Vision transformer (Dosovitskiy et al., 2021): pre-norm blocks, class token, learned positions.

Only the hidden neurons of the MLP blocks pass an activation; each block has one site, ``mlp.act``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demp.errors import UsageError
from demp.train.choices import Activation
from demp.train.models.activations import activation_site, scaled
from demp.train.models.initial import Initialized

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention of several heads; one linear layer makes queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply self-attention to tokens of shape (batch, tokens, dim)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The two linear layers of a block, with its neurons between them."""

    def __init__(self, dim: int, neurons: int, activation: Activation):
        super().__init__()
        self.fc1 = nn.Linear(dim, neurons)
        self.act = activation_site(activation)
        self.fc2 = nn.Linear(neurons, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a residual sum."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, activation: Activation):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, mlp_dim, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention and MLP to tokens of shape (batch, tokens, dim)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(Initialized):
    """Patches to tokens, ``blocks``, and a linear head on the class token."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        patch: int,
        dim: int,
        blocks: Sequence[Block],
    ):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch) ** 2 + 1, dim))
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, num_classes)
        self.initialize()

    def initialize(self) -> None:
        """Close to torchvision; its zero head would hide every gradient at the start."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.class_token)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.patches.weight, std=math.sqrt(1 / self.patches.weight[0].numel()))
        assert self.patches.bias is not None
        nn.init.zeros_(self.patches.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images, (batch, classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(x + self.positions))[:, 0])


def vit_b_16(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    image_size: int = 224,
    width: float = 1.0,
    activation: Activation = "gelu",
    patch: int = 16,
    depth: int = 12,
    dim: int = 768,
    heads: int | None = None,
    mlp_dim: int | None = None,
) -> VisionTransformer:
    """ViT-B/16; ``width`` scales ``dim`` and ``mlp_dim``, by default four times ``dim``.

    There is one head per 64 channels (or the next smaller number of heads that divides ``dim``), so
    that widths 0.25 and 0.5 are ViT-Ti and ViT-S. Torch's fused attention has no second derivative;
    methods of second order run it under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Raises:
        UsageError: patches do not fill the image, or heads do not divide ``dim``.
    """
    if image_size % patch:
        raise UsageError(f"image_size {image_size} is no multiple of patch {patch}; change one of them")
    mlp_dim = scaled(mlp_dim or 4 * dim, width)
    dim = scaled(dim, width)
    heads = heads or next(n for n in range(max(1, dim // 64), 0, -1) if dim % n == 0)
    if dim % heads:
        raise UsageError(f"dim {dim} does not split into {heads} heads; choose heads that divide it")
    blocks = [Block(dim, heads, mlp_dim, activation) for _ in range(depth)]
    return VisionTransformer(num_classes, in_channels, image_size, patch, dim, blocks)
