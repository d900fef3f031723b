"""Models and builders that the features are made of."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from nets import ACTIVATIONS, Forward

WIDTH = 8


def rows(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 6)))


def image(channels: int = 3, size: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size)


def tokens() -> Tensor:
    return torch.randn(2, 5, 6)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def hidden(function: Callable[..., Any], reads: int = WIDTH, **parts: Any) -> Callable[[], tuple[nn.Module, Any]]:
    """``function(self, fc(x))`` into a linear layer."""

    def make() -> tuple[nn.Module, Any]:
        made = {name: part() for name, part in parts.items()}
        body = Forward(
            lambda s, x: s.head(function(s, s.fc(x))), fc=nn.Linear(6, WIDTH), head=nn.Linear(reads, 2), **made
        )
        return body, (rows(),)

    return make


def seen(
    function: Callable[..., Any], reads: int = WIDTH, width: int = WIDTH, **parts: Any
) -> Callable[[], tuple[nn.Module, Any]]:
    """``function(self, relu(bn(conv(x))))``, then a mean over space and a linear layer."""

    def make() -> tuple[nn.Module, Any]:
        made = {name: part() for name, part in parts.items()}

        def forward(s: Any, x: Tensor) -> Tensor:
            return s.head(function(s, F.relu(s.bn(s.conv(x)))).flatten(2).mean(2))

        return Forward(forward, conv=conv(3, width), bn=nn.BatchNorm2d(width), head=nn.Linear(reads, 2), **made), (
            image(),
        )

    return make


def grouped(dims: int, groups: int, inner: int, outer: int, transposed: bool) -> Callable[[], tuple[nn.Module, Any]]:
    """1x1 convolution, grouped convolution, 1x1 convolution, each with its norm and activation."""
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1] if transposed else plain
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]

    def make() -> tuple[nn.Module, Any]:
        mix = kind(inner, outer, 3, groups=groups, **({} if transposed else {"padding": 1}))
        parts = [plain(2, inner, 1), norm(inner), nn.ReLU(), mix, norm(outer), nn.ReLU(), plain(outer, 5, 1), nn.ReLU()]
        return nn.Sequential(*parts, nn.Flatten(2), Last(), nn.Linear(5, 2)), (torch.randn(2, 2, *[4] * dims),)

    return make


class Last(nn.Module):
    """Mean over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class UNet(nn.Module):
    """Down, up by a transposed convolution, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.deep = conv(3, 4), conv(4, 6), conv(6, 8)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(5, 4, 2, 2)
        self.mix2, self.mix1, self.head = conv(12, 5), conv(8, 4), nn.Conv2d(4, 2, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.bn1(self.down1(x)))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        deep = F.relu(self.deep(F.max_pool2d(two, 2)))
        up = F.relu(self.bn2(self.mix2(torch.cat([F.relu(self.up2(deep)), two], 1))))
        return self.head(F.relu(self.mix1(torch.cat([F.relu(self.up1(up)), one], 1))))


class Experts(nn.Module):
    """Every token goes to the expert that a router chooses; a list of modules or one parameter with three axes."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        if packed:
            self.up, self.down = nn.Parameter(torch.randn(3, 16, 6)), nn.Parameter(torch.randn(3, 6, 8))
        else:
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6)) for _ in range(3))
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        choice = self.router(x).argmax(1)
        for number in range(3):
            chosen = (choice == number).nonzero().flatten()
            if not len(chosen):
                continue
            if self.packed:
                gate, value = F.linear(x[chosen], self.up[number]).chunk(2, -1)
                answer = F.linear(F.silu(gate) * value, self.down[number])
            else:
                answer = self.experts[number](x[chosen])
            out.index_add_(0, chosen, answer)
        return out


class Neighbours(nn.Module):
    """A graph convolution: every node adds up what its neighbours made."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("A", torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.A @ self.up(x)))


class Batched(nn.Module):
    """Every expert has tokens of its own; einsum over parameters with three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 8)), nn.Parameter(torch.randn(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ebh,ehd->ebd", F.gelu(torch.einsum("ebi,eih->ebh", x, self.up)), self.down)


class NewGELU(nn.Module):
    """The tanh form of GELU in steps."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3.0))))


class Conv1D(nn.Module):
    """The linear layer of GPT-2: weight transposed, width in an attribute."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Twice(torch.autograd.Function):
    """Written in torch: what it does is seen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2.0


class Outside(torch.autograd.Function):
    """Computed by numpy: where the neurons went is not seen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2.0


Pair = namedtuple("Pair", ["x", "scale"])


@dataclass
class Batch:
    """An input that is no container known to torch."""

    x: Tensor
    name: str = "batch"


def doubled(inputs: Any) -> Any:
    """Inputs in double precision."""

    def double(leaf: Any) -> Any:
        if isinstance(leaf, Batch):
            return Batch(leaf.x.double())
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(double, inputs)


def sequential(
    *modules: Callable[[], nn.Module], inputs: Callable[[], Any] = rows
) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (nn.Sequential(*(module() for module in modules)), (inputs(),))


def linear(inputs: int, outputs: int, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> Callable[[], nn.Module]:
    return lambda: wrap(nn.Linear(inputs, outputs))


def act(kind: str = "relu") -> Callable[[], nn.Module]:
    return ACTIVATIONS[kind]


def encoder(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.TransformerEncoderLayer(6, 2, WIDTH, batch_first=True, dropout=0.0, **options)


def recurrent(kind: Callable[..., nn.Module]) -> Callable[[], tuple[nn.Module, Any]]:
    """A layer of neurons read by a recurrent module, whose own neurons follow."""

    def make() -> tuple[nn.Module, Any]:
        parts = {"fc": nn.Linear(6, 8), "mix": kind(8, 4, batch_first=True), "head": nn.Linear(4, 2)}
        return Forward(lambda s, x: s.head(s.mix(F.relu(s.fc(x)))[0].mean(1)), **parts), (tokens(),)

    return make


def tied_embedding() -> tuple[nn.Module, Any]:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.table(x)
        return F.linear(h + s.down(F.relu(s.up(h))), s.table.weight)

    return Forward(forward, table=nn.Embedding(9, 6), up=nn.Linear(6, 8), down=nn.Linear(8, 6)), (
        torch.randint(0, 9, (2, 3)),
    )


def shared_act() -> tuple[nn.Module, Any]:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.relu(s.one(x))
        return s.head(s.relu(s.two(s.relu(s.mid(h))) + h))

    parts = {"one": nn.Linear(6, 8), "mid": nn.Linear(8, 5), "two": nn.Linear(5, 8), "head": nn.Linear(8, 2)}
    return Forward(forward, relu=nn.ReLU(inplace=True), **parts), (rows(),)


def shared_block() -> tuple[nn.Module, Any]:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.head(torch.cat([s.block(F.relu(s.a(x))), s.block(F.relu(s.b(x)))], 1))

    block = nn.Sequential(nn.Linear(8, 5), nn.ReLU())
    return Forward(forward, a=nn.Linear(6, 8), b=nn.Linear(6, 8), block=block, head=nn.Linear(10, 2)), (rows(),)


def branching(s: Any, x: Tensor) -> Tensor:
    h = F.relu(s.fc(x))
    return s.head(s.one(h) if float(x.detach().sum()) > -1e9 else s.two(h))


def drops(p: float) -> Callable[..., Tensor]:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.conv(x))
        if s.training and torch.rand(()) < p:
            return s.head(h.mean((2, 3)))
        noise = torch.empty(len(h), 1, 1, 1, dtype=h.dtype, device=h.device).bernoulli_(1 - p) if s.training else 1.0
        return s.head((h + s.inner(h) * noise).mean((2, 3)))

    return forward


def complex_layers() -> tuple[nn.Module, Any]:
    def forward(s: Any, x: Tensor) -> Tensor:
        mixed = torch.view_as_complex(torch.stack([x, x], -1)) @ s.turn
        return s.head(F.relu(s.fc(mixed.real)))

    turn = nn.Parameter(torch.randn(6, 6, dtype=torch.complex128))
    return Forward(forward, turn=turn, fc=nn.Linear(6, 8), head=nn.Linear(8, 2)), (rows(),)


def complex_neurons() -> tuple[nn.Module, Any]:
    def forward(s: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(F.relu(s.fc(x)).unsqueeze(2).expand(-1, -1, 4), dim=2)
        return s.head(spectrum.abs().mean(2))

    return Forward(forward, fc=nn.Linear(6, 8), head=nn.Linear(8, 2)), (rows(),)
