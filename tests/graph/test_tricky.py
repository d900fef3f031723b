"""Forwards that are easy to get wrong: which neurons may go, and that the network is the same without them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
import nets
from nets import Forward

IMAGE = (torch.randn(2, 3, 4, 4),)
VECTOR = (torch.randn(3, 6),)
TOKENS = (torch.randn(2, 5, 6),)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def two(function, inputs=VECTOR, reads: int = 8, **parts):
    """``function(self, relu(fc(x)))`` into a linear layer."""
    first = conv(3, 8) if inputs is IMAGE else nn.Linear(6, 8)
    parts.setdefault("head", nn.Linear(reads, 2))
    return Forward(lambda s, x: s.head(function(s, F.relu(s.fc(x)))), fc=first, **parts), inputs


class Bare(nn.Module):
    """Plain parameters, weights on the right."""

    def __init__(self):
        super().__init__()
        self.w1, self.b, self.w2 = (nn.Parameter(torch.randn(*shape)) for shape in ((6, 8), (8,), (8, 2)))

    def forward(self, x):
        return F.relu(x @ self.w1 + self.b) @ self.w2


class Experts(nn.Module):
    """A batched product per expert: the experts share their neurons' positions."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(2, 6, 8)), nn.Parameter(torch.randn(2, 8, 2))

    def forward(self, x):
        return torch.bmm(F.relu(torch.bmm(x, self.w1)), self.w2)


class OwnDepthwise(nn.Module):
    """A depthwise convolution that remembers its groups, or takes them from its input."""

    def __init__(self, remembers: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))
        if remembers:
            self.groups = 8

    def forward(self, x):
        return F.conv2d(x, self.weight, padding=1, groups=getattr(self, "groups", x.shape[1]))


class Reversed(torch.autograd.Function):
    """Gradient reversal returns its input as it is."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -grad


def scaled(layers: int = 8) -> tuple:
    """A scale per channel, and a buffer per channel that is part of no state dict."""

    def forward(s, x):
        return s.head((F.relu(s.fc(x) * s.scale) * s.fixed).mean((2, 3)))

    model = Forward(
        forward, fc=conv(3, layers), scale=nn.Parameter(torch.ones(layers, 1, 1)), head=nn.Linear(layers, 2)
    )
    model.register_buffer("fixed", torch.linspace(1, 2, layers).view(1, layers, 1, 1), persistent=False)
    return model, IMAGE


def twice(s, x):
    return s.head(F.relu(s.mix(F.relu(s.mix(F.relu(s.fc(x)))))))


def tied(s, x):
    return F.linear(F.relu(s.fc(x)), s.fc.weight.t())


def packed_tokens(s, x):
    gate, value = s.both(x).chunk(2, -1)
    return s.head((F.silu(gate) * value).flatten(1))


def data_dependent(s, x):
    return s.head(F.relu(s.fc(x))) * (2.0 if float(x.detach().sum()) > 0 else 1.0)


def cached(s, x):
    if s.cache is None:
        s.cache = torch.linspace(0, 1, 6, device=x.device, dtype=x.dtype)
    if x.shape[1] not in s.table:
        s.table[x.shape[1]] = torch.ones(6, device=x.device, dtype=x.dtype)
    return s.head(F.relu(s.fc(x + s.cache * s.table[x.shape[1]])))


def writes_its_input(s, x):
    x.clamp_(-1, 1)
    return s.head(F.relu(s.fc(x)))


def reused_block(s, x):
    return s.head(s.act(s.block(s.act(s.block(x)))))


CASES = {
    # name: (model, inputs), {layer: neurons that may go}
    "weight on the left": (
        (
            Forward(lambda s, x: s.b.weight @ F.relu(s.a.weight @ x), a=nn.Linear(6, 8), b=nn.Linear(8, 2)),
            (torch.randn(6, 3),),
        ),
        {"relu": 8},
    ),
    "matrix times vector": (
        (
            Forward(lambda s, x: s.b.weight @ F.relu(s.a.weight @ x), a=nn.Linear(6, 8), b=nn.Linear(8, 2)),
            (torch.randn(6),),
        ),
        {"relu": 8},
    ),
    "transposed weights": (
        (
            Forward(lambda s, x: F.relu(x @ s.a.weight.t()) @ s.b.weight.T, a=nn.Linear(6, 8), b=nn.Linear(8, 2)),
            VECTOR,
        ),
        {"relu": 8},
    ),
    "bare parameters": ((Bare(), VECTOR), {"relu": 8}),
    "bare parameters on tokens": ((Bare(), TOKENS), {"relu": 8}),
    "batched experts": ((Experts(), TOKENS), {"relu": 8}),
    "one example without a batch": ((nets.mlp(6, 8, 2), (torch.randn(6),)), {"1": 8}),
    "one example in a batch": ((nets.mlp(6, 8, 2), (torch.randn(1, 6),)), {"1": 8}),
    "no bias": ((nets.mlp(6, 8, 2, bias=False), VECTOR), {"1": 8}),
    "inputs by name": (
        (Forward(lambda s, a, b=1.0: s.c(F.relu(s.d(a) * b)), c=nn.Linear(8, 2), d=nn.Linear(6, 8)), {"a": VECTOR[0]}),
        {"relu": 8},
    ),
    "inputs in a dict": (
        (Forward(lambda s, x: s.c(F.relu(s.d(x["a"]))), c=nn.Linear(8, 2), d=nn.Linear(6, 8)), ({"a": VECTOR[0]},)),
        {"relu": 8},
    ),
    "concatenated with itself": (two(lambda s, h: torch.cat([h, h], 1), reads=16), {"relu": 8}),
    "repeated": (two(lambda s, h: h.repeat(1, 2), reads=16), {"relu": 8}),
    "expanded and flattened": (two(lambda s, h: h[:, None].expand(-1, 3, -1).flatten(1), reads=24), {"relu": 8}),
    "stacked in turn": (
        two(lambda s, h: torch.stack([h, F.gelu(s.fc2(h))], 2).flatten(1), reads=16, fc2=nn.Linear(8, 8)),
        {"relu": 8, "gelu": 8},
    ),
    "both signs": (two(lambda s, h: torch.cat([h, F.relu(h - 1)], 1), reads=16), {"relu": 8, "relu#2": 8}),
    "tokens flattened": (two(lambda s, h: h.flatten(1), inputs=TOKENS, reads=40), {"relu": 8}),
    "packed gate on tokens": (
        (Forward(packed_tokens, both=nn.Linear(6, 16), head=nn.Linear(40, 2)), TOKENS),
        {"silu": 8},
    ),
    "sum over the batch": (two(lambda s, h: h.sum((0, 2, 3)), inputs=IMAGE), {"relu": 8}),
    "max over space": (two(lambda s, h: h.max(2)[0].max(2)[0], inputs=IMAGE), {"relu": 8}),
    "squeezed": (two(lambda s, h: h.mean((2, 3), keepdim=True).squeeze(), inputs=IMAGE), {"relu": 8}),
    "flip and roll over space": (two(lambda s, h: h.flip(3).roll(1, 2).amax((2, 3)), inputs=IMAGE), {"relu": 8}),
    "upsampled": (
        two(lambda s, h: F.interpolate(h, scale_factor=2, mode="bilinear").amax((2, 3)), inputs=IMAGE),
        {"relu": 8},
    ),
    "chosen by another layer": (
        two(lambda s, h: torch.where(h > 0.5, h, F.relu(s.fc2(h))), fc2=nn.Linear(8, 8)),
        {"relu": 8, "relu#2": 8},
    ),
    "padded channels": (two(lambda s, h: F.pad(h, (0, 0)), reads=8), {"relu": 8}),
    "batch norm after the activation": (
        (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 2)), VECTOR),
        {"1": 8},
    ),
    "scale and buffer per channel": (scaled(), {"relu": 8}),
    "one slope per channel": ((nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 2)), VECTOR), {"1": 8}),
    "one slope for all": ((nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 2)), VECTOR), {"1": 8}),
    "broadcast by one neuron": (
        (
            Forward(
                lambda s, x: s.head(F.relu(s.one(x)) * F.relu(s.four(x))),
                one=nn.Linear(6, 1),
                four=nn.Linear(6, 4),
                head=nn.Linear(4, 2),
            ),
            VECTOR,
        ),
        {"relu": 0, "relu#2": 4},
    ),
    "layer of width one in a join": (
        (
            Forward(
                lambda s, x: s.head(torch.cat([F.relu(s.one(x)), F.relu(s.four(x))], 1)),
                one=nn.Linear(6, 1),
                four=nn.Linear(6, 4),
                head=nn.Linear(5, 2),
            ),
            VECTOR,
        ),
        {"relu": 1, "relu#2": 4},
    ),
    "one module, two sites": (
        (
            Forward(
                lambda s, x: s.head(s.act(s.mix(s.act(s.fc(x))))),
                fc=nn.Linear(6, 8),
                mix=nn.Linear(8, 7),
                act=nn.ReLU(inplace=True),
                head=nn.Linear(7, 2),
            ),
            VECTOR,
        ),
        {"act": 8, "act#2": 7},
    ),
    "one weight, two uses": (
        (Forward(twice, fc=nn.Linear(6, 8), mix=nn.Linear(8, 8), head=nn.Linear(8, 2)), VECTOR),
        {"relu": 8, "relu#2": 8, "relu#3": 8},
    ),
    "one block twice on the input": (
        (Forward(reused_block, block=nn.Linear(6, 6), act=nn.ReLU(), head=nn.Linear(6, 2)), VECTOR),
        {"act": 0, "act#2": 0},
    ),
    "tied encoder and decoder": ((Forward(tied, fc=nn.Linear(6, 8)), VECTOR), {"relu": 8}),
    "in-place residual": (
        two(lambda s, h: F.relu_(h.add_(s.fc2(h))), fc2=nn.Linear(8, 8)),
        {"relu": 8, "relu#2": 8},
    ),
    "own depthwise with groups": (
        two(lambda s, h: F.relu(s.deep(h)).amax((2, 3)), inputs=IMAGE, deep=OwnDepthwise(True)),
        {"relu": 8, "relu#2": 8},
    ),
    "own depthwise by its input": (
        two(lambda s, h: F.relu(s.deep(h)).amax((2, 3)), inputs=IMAGE, deep=OwnDepthwise(False)),
        {"relu": 8, "relu#2": 8},
    ),
    "transposed convolution": (
        two(lambda s, h: F.relu(s.up(h)).amax((2, 3)), inputs=IMAGE, reads=5, up=nn.ConvTranspose2d(8, 5, 3, stride=2)),
        {"relu": 8, "relu#2": 5},
    ),
    "three dimensions up and down": (
        (
            nn.Sequential(
                nn.Conv3d(2, 8, 3, padding=1),
                nn.ReLU(),
                nn.ConvTranspose3d(8, 6, 2, 2),
                nn.BatchNorm3d(6),
                nn.ReLU(),
                nn.AdaptiveAvgPool3d(1),
                nn.Flatten(),
                nn.Linear(6, 2),
            ),
            (torch.randn(2, 2, 3, 3, 3),),
        ),
        {"1": 8, "4": 6},
    ),
    "image without a batch": (
        (
            Forward(lambda s, x: s.head(F.relu(s.fc(x)).mean((1, 2))), fc=conv(3, 8), head=nn.Linear(8, 2)),
            (IMAGE[0][0],),
        ),
        {"relu": 8},
    ),
    "recurrent cell": (two(lambda s, h: s.cell(h), cell=nn.GRUCell(8, 4), reads=4), {"relu": 8, "cell": 0}),
    "gradient reversal": (
        two(lambda s, h: torch.cat([Reversed.apply(h), h], 1), reads=16),
        {"relu": 8},
    ),
    "checkpointed": (
        two(lambda s, h: checkpoint(lambda y: F.relu(s.fc2(y)), h, use_reentrant=False), fc2=nn.Linear(8, 8)),
        {"relu": 8, "relu#2": 8},
    ),
    "transformer layer": (
        (
            nn.Sequential(
                nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, activation="gelu"), nn.Linear(6, 2)
            ),
            TOKENS,
        ),
        {"0.gelu": 10},
    ),
    "mixer": (
        (
            Forward(
                lambda s, x: s.head((x + s.b(F.gelu(s.a(x.transpose(1, 2)))).transpose(1, 2)).mean(1)),
                a=nn.Linear(5, 7),
                b=nn.Linear(7, 5),
                head=nn.Linear(6, 2),
            ),
            TOKENS,
        ),
        {"gelu": 7},
    ),
    "depends on the data": (
        (Forward(data_dependent, fc=nn.Linear(6, 8), head=nn.Linear(8, 2)), VECTOR),
        {"relu": 8},
    ),
    "caches on the module": (
        (Forward(cached, fc=nn.Linear(6, 8), head=nn.Linear(8, 2), cache=None, table={}), VECTOR),
        {"relu": 8},
    ),
    "writes into its input": (
        (Forward(writes_its_input, fc=nn.Linear(6, 8), head=nn.Linear(8, 2)), VECTOR),
        {"relu": 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_after_two_cuts(case):
    (model, inputs), removable = CASES[case]
    nets.settle(model)
    inputs = doubled(inputs)
    for seed in range(2):
        graph = demp.trace(model, inputs)
        if seed == 0:
            assert {layer.name: int(layer.removable.sum()) for layer in graph.layers} == removable
        dead = killing.killed(model, graph, 0.4, seed)
        before = comparing.outputs(model, copied(inputs))
        report = demp.cut(model, dead, example_inputs=inputs)
        assert comparing.gap(before, comparing.outputs(model, copied(inputs))) < 1e-10
        assert report.removed == sum(map(len, dead.values())) or report.held


def doubled(inputs):
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.double(), inputs)


def copied(inputs):
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
