"""Small models, one for each thing that PyTorch code does: what demp offers in them, or why it refuses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from feature_parts import (
    WIDTH,
    Batch,
    Batched,
    Conv1D,
    Experts,
    Last,
    Neighbours,
    NewGELU,
    Outside,
    Pair,
    Twice,
    UNet,
    act,
    branching,
    complex_layers,
    complex_neurons,
    conv,
    drops,
    encoder,
    grouped,
    hidden,
    image,
    linear,
    recurrent,
    rows,
    seen,
    sequential,
    shared_act,
    shared_block,
    tied_embedding,
    tokens,
)
from nets import Forward, residual


@dataclass(frozen=True)
class Feature:
    """A model with its inputs, and what the graph must say of it."""

    make: Callable[[], tuple[nn.Module, Any]]
    offered: dict[str, int] = field(default_factory=dict)
    """Layer -> neurons that may go; those of all other layers stay."""
    refused: str = ""
    """Part of the reason why the others may not."""
    again: int = 2
    """Cuts in a row."""


ONE = {"relu": WIDTH}

FEATURES: dict[str, Feature] = {
    # activations
    "functional activation": Feature(hidden(lambda s, h: F.gelu(h)), {"gelu": WIDTH}),
    "in-place activation": Feature(hidden(lambda s, h: F.relu_(h)), ONE),
    "one activation module at several places": Feature(shared_act, {"relu": 8, "relu#2": 5, "relu#3": 8}),
    "clamp(min=0)": Feature(hidden(lambda s, h: h.clamp(min=0)), {"relu": WIDTH}),
    "clamp(min=1)": Feature(hidden(lambda s, h: h.clamp(min=1)), {}),
    "x * (x > 0)": Feature(hidden(lambda s, h: h * (h > 0)), ONE),
    "maximum(x, 0)": Feature(hidden(lambda s, h: torch.maximum(h, torch.zeros_like(h))), {"composite": WIDTH}),
    "where(x > 0, x, 0)": Feature(hidden(lambda s, h: torch.where(h > 0, h, 0.0)), {"composite": WIDTH}),
    "relu(x) ** 2": Feature(hidden(lambda s, h: F.relu(h) ** 2), ONE),
    "relu(x) * relu(x)": Feature(hidden(lambda s, h: F.relu(h) * F.relu(h)), {"relu": WIDTH, "relu#2": WIDTH}),
    "x * sigmoid(1.702 x)": Feature(hidden(lambda s, h: h * torch.sigmoid(1.702 * h)), {"composite": WIDTH}),
    "GELU in steps": Feature(hidden(lambda s, h: s.act(h), act=NewGELU), {"act": WIDTH}),
    "Mish in steps": Feature(hidden(lambda s, h: h * torch.tanh(F.softplus(h))), {"softplus": WIDTH}),
    "sine": Feature(hidden(lambda s, h: torch.sin(30 * h)), {"sin": WIDTH}),
    "softsign": Feature(hidden(lambda s, h: F.softsign(h)), {"composite": WIDTH}),
    "softshrink": Feature(sequential(linear(6, 8), nn.Softshrink, linear(8, 2)), {"1": WIDTH}),
    "GELU by erf": Feature(hidden(lambda s, h: h * 0.5 * (1 + torch.erf(h / 2**0.5))), {"composite": WIDTH}),
    "tanh": Feature(sequential(linear(6, 8), nn.Tanh, linear(8, 2)), {"1": WIDTH}),
    "sigmoid": Feature(hidden(lambda s, h: torch.sigmoid(h)), {}),
    "no activation": Feature(hidden(lambda s, h: h), {}),
    # convolutions
    "convolution in 1d, grouped": Feature(grouped(1, 2, 8, 6, False), {"2": 4, "5": 3, "7": 5}),
    "grouped convolution, few groups": Feature(grouped(2, 2, 8, 12, False), {"2": 4, "5": 6, "7": 5}),
    "grouped convolution, many groups": Feature(grouped(2, 6, 12, 12, False), {"2": 6, "5": 6, "7": 5}),
    "several filters per channel": Feature(grouped(2, 8, 8, 16, False), {"2": 8, "5": 8, "7": 5}),
    "convolution in 3d, grouped": Feature(grouped(3, 2, 6, 6, False), {"2": 3, "5": 3, "7": 5}),
    "circular padding": Feature(
        sequential(
            lambda: conv(3, 8), nn.ReLU, lambda: nn.Conv2d(8, 2, 3, padding=1, padding_mode="circular"), inputs=image
        ),
        {"1": 8},
    ),
    "transposed convolution 1d": Feature(grouped(1, 1, 8, 6, True), {"2": 8, "5": 6, "7": 5}),
    "transposed convolution 2d": Feature(grouped(2, 1, 8, 6, True), {"2": 8, "5": 6, "7": 5}),
    "transposed convolution 3d": Feature(grouped(3, 1, 6, 4, True), {"2": 6, "5": 4, "7": 5}),
    "transposed, few groups": Feature(grouped(2, 2, 8, 12, True), {"2": 4, "5": 6, "7": 5}),
    "transposed, many groups": Feature(grouped(2, 6, 12, 18, True), {"2": 6, "5": 6, "7": 5}),
    "transposed depthwise": Feature(grouped(2, 8, 8, 8, True), {"2": 8, "5": 8, "7": 5}),
    "grouped convolution of the input": Feature(
        lambda: (nn.Sequential(conv(4, 8, groups=2), nn.ReLU(), nn.Flatten(2), Last(), nn.Linear(8, 2)), (image(4),)),
        {"1": 4},
    ),
    "channel shuffle": Feature(seen(lambda s, h: F.channel_shuffle(h, 2)), ONE),
    "channel shuffle by views": Feature(
        seen(lambda s, h: h.view(-1, 2, h.shape[1] // 2, 6, 6).transpose(1, 2).reshape(-1, h.shape[1], 6, 6)), ONE
    ),
    # shapes
    "U-Net": Feature(
        lambda: (UNet(), (image(3, 8),)),
        {"relu": 4, "relu#2": 6, "relu#3": 8, "relu#4": 6, "relu#5": 5, "relu#6": 4, "relu#7": 4},
    ),
    "pre-activation residuals": Feature(
        lambda: residual((4, 4, 4), pre=True), {"1.act1": 4, "1.act2": 3, "2.act1": 4, "2.act2": 3, "4": 4}
    ),
    "a module used twice": Feature(shared_block, {"relu": 8, "relu#2": 8, "block.1": 5, "block.1#2": 5}),
    "weight-tied embedding": Feature(tied_embedding, {"relu": 8}),
    "bare parameters with matmul": Feature(hidden(lambda s, h: F.relu(h) @ s.w.weight.t(), w=linear(8, 8)), ONE),
    "bare parameters with einsum": Feature(
        hidden(lambda s, h: F.relu(torch.einsum("bi,oi->bo", F.relu(h), s.w.weight)), w=linear(8, 8)),
        {"relu": 8, "relu#2": 8},
    ),
    "gate packed in one matrix": Feature(
        lambda: (
            Forward(
                lambda s, x: s.down((lambda a, b: F.silu(a) * b)(*s.both(x).chunk(2, -1))),
                both=nn.Linear(6, 16),
                down=nn.Linear(8, 2),
            ),
            (rows(),),
        ),
        {"silu": 8},
    ),
    "unequal parts of one matrix": Feature(
        hidden(lambda s, h: torch.cat([F.relu(h[:, :2]), F.gelu(h[:, 2:])], 1)),
        {"relu": 2, "gelu": 6},
    ),
    "experts in a list": Feature(
        lambda: (Experts(False), (rows(32, 6),)), {"experts.0.1": 8, "experts.1.1": 8, "experts.2.1": 8}
    ),
    "experts in one parameter": Feature(lambda: (Experts(True), (rows(32, 6),)), {"silu": 8, "silu#2": 8, "silu#3": 8}),
    "experts with batched einsum": Feature(lambda: (Batched(), (torch.randn(3, 4, 6),)), {"gelu": 8}),
    "an adjacency as a buffer": Feature(lambda: (Neighbours(), (rows(4, 6),)), {"relu": 8}),
    "HF Conv1D": Feature(sequential(lambda: Conv1D(8, 6), NewGELU, lambda: Conv1D(2, 8)), {"1": 8}),
    # attention and norms
    "cosine of two features, written out": Feature(
        hidden(
            lambda s, h: (F.normalize(F.relu(h)) * F.normalize(F.relu(s.w(F.relu(h))))).sum(1, True).expand(-1, 8),
            w=linear(8, 8),
        ),
        {"relu": 8, "relu#2": 8, "relu#3": 8},
    ),
    "MLP beside nn.MultiheadAttention": Feature(sequential(encoder(), linear(6, 2), inputs=tokens), {"0.relu": 8}),
    "neurons into nn.MultiheadAttention": Feature(
        lambda: (
            Forward(
                lambda s, x: s.head((lambda h: s.mix(h, h, h)[0])(F.relu(s.fc(x)))),
                fc=nn.Linear(6, 8),
                mix=nn.MultiheadAttention(8, 4, batch_first=True),
                head=nn.Linear(8, 2),
            ),
            (tokens(),),
        ),
        {"relu": 8, "mix.attention": 4},
    ),
    "LayerNorm on the axis": Feature(
        hidden(lambda s, h: s.n(F.relu(h)), n=lambda: nn.LayerNorm(8)), {"relu": 0}, "layer_norm"
    ),
    "RMSNorm on the axis": Feature(
        hidden(lambda s, h: s.n(F.relu(h)), n=lambda: nn.RMSNorm(8)), {"relu": 0}, "mixes neurons"
    ),
    "GroupNorm on the axis": Feature(seen(lambda s, h: s.n(h), n=lambda: nn.GroupNorm(4, 8)), {"relu": 4}),
    "InstanceNorm on the axis": Feature(
        seen(lambda s, h: F.relu(s.n(s.c(h))), n=lambda: nn.InstanceNorm2d(8, affine=True), c=lambda: conv(8, 8)),
        {"relu": 8, "relu#2": 8},
    ),
    # parametrised weights
    "weight_norm": Feature(sequential(linear(6, 8, weight_norm), act(), linear(8, 2)), {"1": 0}, "computed weight"),
    "spectral_norm": Feature(
        sequential(linear(6, 8, spectral_norm), act(), linear(8, 2)), {"1": 0}, "the weight is computed"
    ),
    # recurrent
    "nn.RNN": Feature(recurrent(nn.RNN), ONE | {"mix": 4}),
    "nn.LSTM": Feature(recurrent(nn.LSTM), ONE | {"mix": 4}),
    "nn.GRU": Feature(recurrent(nn.GRU), ONE | {"mix": 4}),
    # dtypes and functions
    "complex parameters beside real neurons": Feature(complex_layers, {"relu": 8}),
    "neurons that become complex": Feature(complex_neurons, ONE),
    "custom autograd function": Feature(hidden(lambda s, h: Twice.apply(F.relu(h))), ONE),
    "custom autograd function in numpy": Feature(
        hidden(lambda s, h: Outside.apply(F.relu(h))), {"relu": 0}, "leave torch"
    ),
    "values that leave torch": Feature(
        hidden(lambda s, h: (h := F.relu(h)) * float(h.detach().numpy().mean())), {"relu": 0}, "leave torch by numpy"
    ),
    "checkpointed": Feature(
        hidden(lambda s, h: checkpoint(lambda y: F.relu(s.b(y)), F.relu(h), use_reentrant=False), b=linear(8, 8)),
        {"relu": 8, "relu#2": 8},
    ),
    # noise in training
    "dropout": Feature(hidden(lambda s, h: s.d(F.relu(h)), d=lambda: nn.Dropout(0.5)), ONE),
    "dropout 1d": Feature(hidden(lambda s, h: s.d(F.relu(h)), d=lambda: nn.Dropout1d(0.5)), ONE),
    "dropout 2d": Feature(seen(lambda s, h: s.d(h), d=lambda: nn.Dropout2d(0.5)), ONE),
    "dropout 3d": Feature(seen(lambda s, h: s.d(h), d=lambda: nn.Dropout3d(0.5)), ONE),
    "alpha dropout": Feature(hidden(lambda s, h: s.d(F.selu(h)), d=lambda: nn.AlphaDropout(0.5)), {"elu": 8}),
    "stochastic depth": Feature(
        lambda: (
            Forward(
                drops(0.5),
                conv=conv(3, 8),
                inner=nn.Sequential(conv(8, 5), nn.ReLU(), conv(5, 8), nn.ReLU()),
                head=nn.Linear(8, 2),
            ),
            (image(),),
        ),
        {"relu": 8, "inner.1": 5, "inner.3": 8},
    ),
    "another head in one training step of ten": Feature(
        lambda: (
            Forward(
                lambda s, x: (s.other if s.training and torch.rand(()) > 0.9 else s.head)(F.relu(s.fc(x))),
                fc=nn.Linear(6, 8),
                head=nn.Linear(8, 2),
                other=nn.Linear(8, 2),
            ),
            (rows(),),
        ),
        {"relu": 0},
        "in sight of other.weight",
    ),
    # control flow
    "control flow on values": Feature(
        hidden(lambda s, h: F.relu(h) * (2.0 if float(h.detach().sum()) > -1e9 else 1.0)),
        {"relu": 0},
        "read before any",
    ),
    "control flow on inputs": Feature(
        lambda: (
            Forward(
                lambda s, x: s.head(F.relu(s.fc(x if float(x.detach().sum()) > 0 else -x))),
                fc=nn.Linear(6, 8),
                head=nn.Linear(8, 2),
            ),
            (rows(),),
        ),
        ONE,
    ),
    "a branch that did not run": Feature(
        lambda: (
            Forward(branching, fc=nn.Linear(6, 8), one=nn.Linear(8, 5), two=nn.Linear(8, 5), head=nn.Linear(5, 2)),
            (rows(),),
        ),
        {"relu": 0},
        "did not run",
    ),
    # inputs
    "inputs as a dict": Feature(
        lambda: (
            Forward(lambda s, x: s.b(F.relu(s.a(x["x"]))), a=nn.Linear(6, 8), b=nn.Linear(8, 2)),
            ({"x": rows()},),
        ),
        ONE,
    ),
    "inputs as a dataclass": Feature(
        lambda: (Forward(lambda s, x: s.b(F.relu(s.a(x.x))), a=nn.Linear(6, 8), b=nn.Linear(8, 2)), (Batch(rows()),)),
        ONE,
    ),
    "inputs as a named tuple": Feature(
        lambda: (
            Forward(lambda s, x: s.b(F.relu(s.a(x.x) * x.scale)), a=nn.Linear(6, 8), b=nn.Linear(8, 2)),
            (Pair(rows(), torch.ones(1)),),
        ),
        ONE,
    ),
}
