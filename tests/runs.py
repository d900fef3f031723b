"""Small networks, data and training loops for the tests of methods and of the pruner."""

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp

gc.collect()
gc.freeze()  # each check searches what Python holds for pending backwards; the libraries' own objects hold none


class ResidualNet(nn.Module):
    """Stem, one residual block, pooled head: inner neurons, and a stream that two activations carry."""

    def __init__(self, stream: int = 6, inner: int = 8, classes: int = 3, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, stream, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stream)
        self.stem_act = act()
        self.conv1 = nn.Conv2d(stream, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.act1 = act()
        self.conv2 = nn.Conv2d(inner, stream, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(stream)
        self.act2 = act()
        self.head = nn.Linear(stream, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_act(self.stem_norm(self.stem(x)))
        branch = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(branch)) + x)
        return self.head(x.mean((2, 3)))


def small_network(num_classes: int, in_channels: int) -> nn.Module:
    """A ResidualNet for the trainer, which names it ``runs:small_network``."""
    model = ResidualNet(12, 16, num_classes)
    model.stem = nn.Conv2d(in_channels, 12, 3, padding=1, stride=2, bias=False)
    return model


class PlainNet(nn.Module):
    """Two convolutions with batch norm, flattened into two linear layers."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.act1 = act()
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(5)
        self.act2 = act()
        self.fc = nn.Linear(5 * 4, 7)
        self.act3 = act()
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.act3(self.fc(x)))


class Mlp(nn.Module):
    """Two hidden layers, no normalisation."""

    def __init__(self, bias: bool = True, act: type[nn.Module] = nn.ReLU, hidden: tuple[int, int] = (12, 10)) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, hidden[0], bias=bias)
        self.act1 = act()
        self.fc2 = nn.Linear(*hidden, bias=bias)
        self.act2 = act()
        self.head = nn.Linear(hidden[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.fc2(self.act1(self.fc1(x)))))


IMAGE, VECTOR = (2, 6, 6), (6,)


def build(kind: type[nn.Module], *, seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    """A network with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**options).to(dtype)


def examples(shape: tuple[int, ...], *, n: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """One batch of inputs."""
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch_at(step: int, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The training batch of a step: a function of the step alone, with a signal to learn."""
    x = examples(shape, n=16, seed=1000 + step, dtype=dtype)
    flat = x.flatten(1)
    return x, (flat[:, 0] > 0).long() + (flat[:, 1] > 0.5).long()


def loss_of(model: nn.Module, step: int, shape: tuple[int, ...]) -> Tensor:
    """Training loss on the batch of a step."""
    x, y = batch_at(step, shape, dtype=next(model.parameters()).dtype)
    return F.cross_entropy(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], steps: range) -> list[float]:
    """A plain loop that knows nothing of demp; the loss of every step."""
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step, shape)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def kill(norm: nn.Module, neurons: list[int]) -> None:
    """Shift the pre-activations of these neurons so far down that they are dead."""
    norm.weight[neurons] *= 0.1  # type: ignore[index,operator]
    norm.bias[neurons] = -5.0  # type: ignore[index]


@torch.no_grad()
def kill_linear(layer: nn.Linear, neurons: list[int]) -> None:
    """The same for the outputs of a linear layer with a bias."""
    layer.weight[neurons] *= 0.01
    layer.bias[neurons] = -5.0


def same(a: nn.Module, b: nn.Module) -> bool:
    """Equal parameters and buffers, bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def hooks_on(model: nn.Module) -> int:
    """Forward hooks and pre-hooks on a model and its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def quiet_demp(model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    """DemP without noise on an image network of this module, judged on two fixed batches, unless told otherwise."""
    defaults = {
        "example_inputs": (examples(IMAGE),), "batches": [examples(IMAGE, seed=1), examples(IMAGE, seed=2)],
        "total_steps": 40, "peak_noise_std": 0.0,
    }  # fmt: skip
    return demp.DemP(model, optimizer, **{**defaults, **options})


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    """SGD with momentum over all parameters."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def all_alive(kind: type[nn.Module] = PlainNet, **options) -> Any:
    """A network in which every neuron speaks, whatever small steps do."""
    model = build(kind, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data[:] = 5.0
    if hasattr(model, "fc"):
        model.fc.weight.data *= 1e-2
        model.fc.bias.data[:] = 5.0
    return settled(model)


def with_dead(act1: Sequence[int] = (), act2: Sequence[int] = (), act3: Sequence[int] = (), **options) -> PlainNet:
    """A PlainNet in which exactly these neurons are dead."""
    model = all_alive(PlainNet, **options)
    kill(model.norm1, list(act1))
    kill(model.norm2, list(act2))
    kill_linear(model.fc, list(act3))
    return settled(model)


def settled(model: Any) -> Any:
    """The model with running statistics of the training data."""
    with torch.no_grad():
        for step in range(60):
            loss_of(model, step, IMAGE)
    return model


def widths(model: PlainNet) -> tuple[int, int, int]:
    """Neurons that the three layers of a PlainNet have now."""
    return model.conv1.out_channels, model.conv2.out_channels, model.fc.out_features


def step_hooks(optimizer: torch.optim.Optimizer) -> int:
    """Hooks on an optimizer's step."""
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
