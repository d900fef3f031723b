"""Networks whose blocks write into one stream, which norms read."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, HEADS, WORDS = 12, 20, 2, 17


class Root(nn.Module):
    """An RMS norm as people write it; ``form`` says how."""

    def __init__(self, form: str = "llama") -> None:
        super().__init__()
        self.form, self.weight, self.eps = form, nn.Parameter(1 + 0.3 * torch.randn(WIDTH)), 0.05

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "llama":
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        if self.form == "gemma":
            return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-3) * (1.0 + self.weight)
        if self.form == "root":
            return x / torch.sqrt(torch.mean(x**2, dim=-1, keepdim=True) + self.eps) * self.weight
        if self.form == "norm":
            return x / (x.norm(2, dim=-1, keepdim=True) * WIDTH**-0.5 + self.eps) * self.weight
        if self.form == "normalize":
            return F.normalize(x, dim=-1) * WIDTH**0.5 * self.weight
        return F.rms_norm(x, (WIDTH,), self.weight, self.eps)


def torch_norm() -> nn.Module:
    norm = nn.RMSNorm(WIDTH, eps=0.05)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    return norm


def layer_norm(*, bias: bool = True) -> nn.Module:
    norm = nn.LayerNorm(WIDTH, eps=0.05, bias=bias)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    if bias:
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm


class Scaled(nn.Module):
    """A layer norm as a function, the same in fewer words."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, x.shape[-1:], self.scale)


NORMS: dict[str, Any] = {
    "torch": torch_norm,
    "layer": layer_norm,
    "layer without shift": lambda: layer_norm(bias=False),
    "layer as a function": Scaled,
    "torch without eps": lambda: nn.RMSNorm(WIDTH),
    "torch without scale": lambda: nn.RMSNorm(WIDTH, eps=0.05, elementwise_affine=False),
    **{form: (lambda form=form: Root(form)) for form in ("llama", "gemma", "root", "norm", "normalize", "function")},
}


class Block(nn.Module):
    """Attention and a gated MLP, both behind norms."""

    def __init__(self, norm: Any, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=bias), nn.Linear(WIDTH, HIDDEN, bias=bias)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        sizes = x.shape[0], x.shape[1], HEADS, -1
        q, k, v = (t.view(*sizes).transpose(1, 2) for t in (self.q(h), self.k(h), self.v(h)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Streaming(nn.Module):
    """A language model; ``tied``: the embedding makes the scores, too."""

    def __init__(self, norm: str = "llama", *, blocks: int = 1, tied: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(NORMS[norm], bias) for _ in range(blocks))
        self.norm, self.head = NORMS[norm](), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def network(norm: str = "llama", **options: Any) -> Any:
    torch.manual_seed(0)
    return Streaming(norm, **options).double()


def words(seed: int = 0, length: int = 6) -> Tensor:
    return torch.randint(0, WORDS, (3, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def silence(model: Any, channels: list[int]) -> None:
    """No writer of the stream writes these channels any more; layer norms make zeros of them."""
    model.embed.weight[:, channels] = 0
    for block in model.blocks:
        for writer in (block.out, block.down):
            writer.weight[channels] = 0
            if writer.bias is not None:
                writer.bias[channels] = 0
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, Scaled)):
            for p in module.parameters():
                p[channels] = 0
