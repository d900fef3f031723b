"""Small networks of every shape that matters."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "inplace": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.05),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
}
"""Activations that are zero at zero."""


class Forward(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self, *args, **kwargs)


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """fp64, evaluation mode, and norms as after some training: statistics, scales and shifts away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.2, 1.0, generator=generator)
    return model


def plain(
    dims: int = 2,
    widths: Sequence[int] = (5, 4),
    activation: str = "relu",
    norm: bool = True,
    stride: int = 1,
    dilation: int = 1,
    pool: str = "max",
    end: str = "flatten",
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Convolutions, a pool between them, then flatten or a global mean, and a hidden linear layer."""
    layers: list[nn.Module] = []
    inputs, size = 2, 6
    for at, width in enumerate(widths):
        layers.append(CONV[dims](inputs, width, 3, stride=stride if at else 1, padding=dilation, dilation=dilation))
        if norm:
            layers.append(NORM[dims](width))
        layers.append(ACTIVATIONS[activation]())
        if at == 0 and pool != "none":
            layers.append((MAX_POOL if pool == "max" else AVERAGE_POOL)[dims](2))
            size = 3
        elif at and stride > 1:
            size = (size - 1) // stride + 1
        inputs = width
    if end == "flatten":
        layers.append(nn.Flatten())
        inputs *= size**dims
    else:
        layers.append(Forward(lambda self, x: x.flatten(2).mean(2)))
    layers += [nn.Linear(inputs, 6), ACTIVATIONS[activation](), nn.Linear(6, 3)]
    return nn.Sequential(*layers), (torch.randn(3, 2, *[6] * dims),)


class PostBlock(nn.Module):
    """relu(branch + shortcut); a squeezed branch is scaled by a gate that reads it before any activation."""

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, activation: str, squeezed: bool = False,
        normed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act1, self.act2 = ACTIVATIONS[activation](), ACTIVATIONS[activation]()
        same = inputs == outputs and stride == 1
        straight = nn.BatchNorm2d(inputs) if normed else nn.Identity()
        self.shortcut = straight if same else nn.Conv2d(inputs, outputs, 1, stride)
        self.gate = nn.Conv2d(outputs, outputs, 1) if squeezed else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.act2(y + self.shortcut(x))


class PreBlock(nn.Module):
    """Pre-activation: x + conv(relu(bn(conv(relu(bn(x))))))."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.bn1, self.act1, self.conv1 = nn.BatchNorm2d(width), ACTIVATIONS[activation](), nn.Conv2d(width, inner, 1)
        self.bn2, self.act2 = nn.BatchNorm2d(inner), ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act2(self.bn2(self.conv1(self.act1(self.bn1(x))))))


def residual(
    widths: Sequence[int] = (4, 4, 6), inner: int = 3, stride: int = 1, activation: str = "relu", pre: bool = False,
    squeezed: bool = False, normed: bool = False,
) -> tuple[nn.Module, tuple[Tensor, ...]]:  # fmt: skip
    """A stem and residual blocks; where the width changes, the shortcut is a projection.

    Of post-activation blocks every second one may be squeezed, and shortcuts may have a norm.
    """
    blocks: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        if pre:
            blocks.append(PreBlock(widths[0], inner, activation))
        else:
            step, gated = stride if inputs != outputs else 1, squeezed and number % 2 == 0
            blocks.append(PostBlock(inputs, inner, outputs, step, activation, gated, normed))
    last = widths[0] if pre else widths[-1]
    tail = [nn.BatchNorm2d(last), ACTIVATIONS[activation]()] if pre else []
    stem = [nn.Conv2d(3, widths[0], 3, padding=1)] + ([] if pre else [ACTIVATIONS[activation]()])
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 3)]
    return nn.Sequential(*stem, *blocks, *tail, *head), (torch.randn(2, 3, 5, 5),)


class Dense(nn.Module):
    """DenseNet: every layer reads the concatenation of all earlier ones."""

    def __init__(self, width: int, growth: int, layers: int, activation: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            act1, act2 = ACTIVATIONS[activation](), ACTIVATIONS[activation]()
            narrow = [nn.BatchNorm2d(width), act1, nn.Conv2d(width, 5, 1, bias=False)]
            grow = [nn.BatchNorm2d(5), act2, nn.Conv2d(5, growth, 3, padding=1, bias=False)]
            self.layers.append(nn.Sequential(*narrow, *grow))
            width += growth
        self.norm, self.act, self.head = nn.BatchNorm2d(width), ACTIVATIONS[activation](), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(self.act(self.norm(torch.cat(features, 1))).mean((2, 3)))


def dense(
    width: int = 4, growth: int = 3, layers: int = 2, activation: str = "relu"
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """DenseNet in small."""
    return Dense(width, growth, layers, activation), (torch.randn(2, 3, 4, 4),)


class Branches(nn.Module):
    """Inception: branches side by side, the last one activated after the join."""

    def __init__(self, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        make = ACTIVATIONS[activation]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), make()) for width in widths
        )
        self.act, self.mix, self.head = make(), nn.Conv2d(sum(widths), 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([branch(x) for branch in self.branches], 1)
        return self.head(self.act(self.mix(joined)).amax((2, 3)))


def branches(widths: Sequence[int] = (3, 2, 4), activation: str = "relu") -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Inception in small."""
    return Branches(widths, activation), (torch.randn(2, 3, 4, 4),)


class Separable(nn.Module):
    """Inverted residual: expand, depthwise, squeeze-excite, project."""

    def __init__(self, width: int, hidden: int, squeeze: int, activation: str) -> None:
        super().__init__()
        make = ACTIVATIONS[activation]
        self.expand, self.bn1, self.act1 = nn.Conv2d(3, hidden, 1, bias=False), nn.BatchNorm2d(hidden), make()
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(hidden), make()
        self.reduce, self.act3, self.excite = nn.Conv2d(hidden, squeeze, 1), make(), nn.Conv2d(squeeze, hidden, 1)
        self.project, self.act4, self.head = nn.Conv2d(hidden, width, 1), make(), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.bn2(self.depthwise(self.act1(self.bn1(self.expand(x))))))
        gate = torch.sigmoid(self.excite(self.act3(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.head(self.act4(self.project(x * gate)).mean((2, 3)))


def separable(
    width: int = 4, hidden: int = 6, squeeze: int = 3, activation: str = "relu"
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """MobileNet in small."""
    return Separable(width, hidden, squeeze, activation), (torch.randn(2, 3, 4, 4),)


class Gated(nn.Module):
    """Gated MLP: gate and value in two matrices, or packed in one."""

    def __init__(self, hidden: int, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "separate":
            self.gate, self.value = nn.Linear(4, hidden), nn.Linear(4, hidden)
        else:
            self.both = nn.Linear(4, 2 * hidden)
        self.down = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "separate":
            return self.down(F.silu(self.gate(x)) * self.value(x))
        if self.how == "glu":
            return self.down(F.glu(self.both(x)))
        gate, value = self.both(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


def gated(hidden: int = 6, how: str = "separate") -> tuple[nn.Module, tuple[Tensor, ...]]:
    """SwiGLU and its relatives."""
    return Gated(hidden, how), (torch.randn(2, 5, 4),)


class Tokens(nn.Module):
    """Convolution to tokens (or channels last), MLP on the last axis, and back."""

    def __init__(self, width: int, hidden: int, activation: str, layout: str) -> None:
        super().__init__()
        make = ACTIVATIONS[activation]
        self.layout = layout
        self.patches, self.act1 = nn.Conv2d(3, width, 2, 2), make()
        self.fc1, self.act2, self.fc2, self.act3 = nn.Linear(width, hidden), make(), nn.Linear(hidden, width), make()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.patches(x))
        x = x.permute(0, 2, 3, 1) if self.layout == "nhwc" else x.flatten(2).transpose(1, 2)
        x = self.act3(self.fc2(self.act2(self.fc1(x))) + x)
        if self.layout == "nhwc":
            return self.head(x.permute(0, 3, 1, 2).mean((2, 3)))
        return self.head(x.amax(1))


def tokens(
    width: int = 5, hidden: int = 6, activation: str = "relu", layout: str = "nhwc"
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Neurons on the last axis, then on the second again."""
    return Tokens(width, hidden, activation, layout), (torch.randn(2, 3, 4, 4),)


class Grouped(nn.Module):
    """1x1, a grouped convolution (transposed or not), squeeze-excite, 1x1; activations by modules or functions."""

    def __init__(self, dims: int, groups: int, inner: int, outer: int, transposed: bool, activation: str) -> None:
        super().__init__()
        kind = TRANSPOSED[dims] if transposed else CONV[dims]
        make = ACTIVATIONS[activation]
        self.first, self.bn1, self.act1 = CONV[dims](2, groups * inner, 1), NORM[dims](groups * inner), make()
        self.mix = kind(groups * inner, groups * outer, 3, groups=groups, padding=1)
        self.bn2, self.act2 = NORM[dims](groups * outer), make()
        self.reduce, self.excite = nn.Linear(groups * outer, 3), nn.Linear(3, groups * outer)
        self.last, self.head = CONV[dims](groups * outer, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.bn2(self.mix(self.act1(self.bn1(self.first(x))))))
        gate = torch.sigmoid(self.excite(F.relu(self.reduce(x.flatten(2).mean(2)))))
        x = F.gelu(self.last(x * gate.view(*gate.shape, *[1] * (x.dim() - 2))))
        return self.head(x.flatten(2).amax(2))


def grouped(
    dims: int = 2, groups: int = 2, inner: int = 2, outer: int = 3, transposed: bool = False, activation: str = "relu"
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """ResNeXt in small."""
    return Grouped(dims, groups, inner, outer, transposed, activation), (torch.randn(2, 2, *[4] * dims),)


class Skips(nn.Module):
    """U-Net: down, a block that both ways share, up by a transposed convolution, a skip by concatenation."""

    def __init__(self, dims: int, width: int, deep: int, shared: bool) -> None:
        super().__init__()
        self.down, self.deep = CONV[dims](2, width, 3, padding=1), CONV[dims](width, deep, 3, padding=1)
        self.block = nn.Sequential(CONV[dims](deep, deep, 1), NORM[dims](deep), nn.ReLU(inplace=True))
        self.up, self.mix = TRANSPOSED[dims](deep, width, 2, 2), CONV[dims](2 * width, 3, 1)
        self.pool, self.shared = MAX_POOL[dims](2), shared

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu_(self.down(x))
        x = self.block(F.relu(self.deep(self.pool(skip))))
        x = self.block(x) if self.shared else x
        return self.mix(torch.cat([F.relu(self.up(x)), skip], 1))


def skips(dims: int = 2, width: int = 3, deep: int = 4, shared: bool = True) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """U-Net in small."""
    return Skips(dims, width, deep, shared), (torch.randn(2, 2, *[4] * dims),)


class Paths(nn.Module):
    """Two paths through one shared module, joined; the end tied to the beginning."""

    def __init__(self, width: int, hidden: int, tied: bool, how: str) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Linear(4, width), nn.Linear(4, width), nn.Linear(width, hidden)
        self.head = nn.Linear(2 * hidden, width if tied else 4)
        self.tied, self.how = tied, how

    def activate(self, x: Tensor) -> Tensor:
        if self.how == "mask":
            return x * (x > 0)
        if self.how == "steps":
            return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))
        return {"clamp": lambda: x.clamp(min=0), "inplace": lambda: F.relu_(x), "gate": lambda: x * x.sigmoid()}[
            self.how
        ]()

    def forward(self, x: Tensor) -> Tensor:
        one, two = (self.activate(self.shared(self.activate(path(x)))) for path in (self.a, self.b))
        joined = self.head(torch.cat([one, two], -1))
        return F.relu(joined) @ self.a.weight if self.tied else joined


def paths(
    width: int = 5, hidden: int = 3, tied: bool = False, how: str = "mask"
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Shared modules, tied weights, activations in several steps."""
    return Paths(width, hidden, tied, how), (torch.randn(3, 4),)


class Experts(nn.Module):
    """A router sends every row to one expert; experts are modules, or slices of one parameter."""

    def __init__(self, count: int, hidden: int, packed: bool) -> None:
        super().__init__()
        self.router, self.count, self.packed = nn.Linear(4, count), count, packed
        if packed:
            self.up, self.down = (
                nn.Parameter(torch.randn(count, 2 * hidden, 4)),
                nn.Parameter(torch.randn(count, 4, hidden)),
            )
        else:
            self.up = nn.ModuleList(nn.Linear(4, hidden) for _ in range(count))
            self.down = nn.ModuleList(nn.Linear(hidden, 4) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        out, choice = torch.zeros_like(x), self.router(x).argmax(-1)
        for number in range(self.count):
            rows = (choice == number).nonzero().flatten()
            if not len(rows):
                continue
            if self.packed:
                gate, value = F.linear(x[rows], self.up[number]).chunk(2, -1)
                answer = F.linear(F.silu(gate) * value, self.down[number])
            else:
                answer = self.down[number](F.relu(self.up[number](x[rows])))
            out.index_add_(0, rows, answer)
        return out


def experts(count: int = 2, hidden: int = 4, packed: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A mixture of experts in small."""
    return Experts(count, hidden, packed), (torch.randn(12, 4),)


def mlp(*widths: int, bias: bool = True, norm: bool = False) -> nn.Sequential:
    """Linear and ReLU in turn: ``mlp(4, 8, 3)`` has one layer of 8 neurons."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers[: -2 if norm else -1])
