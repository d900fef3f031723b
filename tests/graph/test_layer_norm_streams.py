"""Streams under layer norms, which make something else of a zero: it takes a scale and a shift of zero, too."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from exactly import reasons, trained
from streaming import HEADS, HIDDEN, WIDTH, WORDS, layer_norm, words

STREAM = "stream"


class Masked(nn.Module):
    """Layer norms behind sums (as in BERT), dropout, and tied scores behind a norm of activations of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(6, WIDTH))
        self.first, self.up, self.down = layer_norm(), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.second, self.drop = layer_norm(), nn.Dropout(0.2)
        self.dense, self.third, self.bias = nn.Linear(WIDTH, WIDTH), layer_norm(), nn.Parameter(torch.randn(WORDS))

    def forward(self, words: Tensor) -> Tensor:
        x = self.drop(self.first(self.embed(words) + self.places))
        x = self.second(x + self.drop(self.down(F.gelu(self.up(x)))))
        return F.linear(self.third(F.gelu(self.dense(x))), self.embed.weight, self.bias)


def test_norms_behind_sums_and_behind_activations():
    torch.manual_seed(0)
    model, x = Masked().double(), words()
    for seed in range(2):
        graph = demp.trace(model, (x,), streams=True)
        assert int(graph.layer(STREAM).removable.sum()) == model.embed.weight.shape[1]
        dead = killing.killed(model, graph, 0.3, seed, low=0.0)
        before = comparing.outputs(model, (x,))
        report = demp.cut(model, dead, example_inputs=(x,), graph=graph)
        assert report.removed == sum(map(len, dead.values())) and STREAM in dead
        assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
    assert model.dense.weight.shape == (model.embed.weight.shape[1],) * 2 and len(model.third.weight) < WIDTH


def test_the_fused_encoder_keeps_its_stream():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), encoder, layer_norm(), nn.Linear(WIDTH, 3)).double().eval()
    graph = demp.trace(model, (words(),), streams=True)
    assert {layer.activation for layer in graph.layers if bool(layer.removable.any())} == {"relu"}
    why = "the fused inference of nn.TransformerEncoderLayer runs its norms over all channels (at 1.norm1)"
    assert f"1.norm1.stream: {why}" in reasons(graph)


class Literal(nn.Module):
    """Heads as many scripts split and merge them: by the width of the stream, whatever it is now."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = layer_norm(), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.heads, self.width = HEADS, WIDTH

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).split(self.width, 2)
        q, k, v = (t.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).contiguous().view(batch, length, width))


def test_heads_that_are_split_by_the_width_of_the_stream():
    torch.manual_seed(0)
    layers = (nn.Embedding(WORDS, WIDTH), Literal(), Literal(), layer_norm(), nn.Linear(WIDTH, 3))
    model, x = nn.Sequential(*layers).double(), words()
    for dead in ({STREAM: [0, 5, 7]}, {STREAM: [2], "1.attention": [1]}):
        graph = demp.trace(model, (x,), streams=True)
        assert graph.removable() == sum(layer.width for layer in graph.layers)
        killing.kill(model, graph, dead)
        before, in_training = comparing.outputs(model, (x,)), trained(model, (x,))
        assert demp.cut(model, dead, example_inputs=(x,), graph=graph).removed == sum(map(len, dead.values()))
        assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
        assert comparing.gap(in_training, trained(model, (x,))) < 1e-10
    assert model[1].qkv.weight.shape == (3 * WIDTH // 2, WIDTH - 4) and model[2].qkv.weight.shape[0] == 3 * WIDTH
