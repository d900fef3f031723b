"""Streams under layer norms, which make something else of a zero: it takes a scale and a shift of zero, too."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from exactly import reasons
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
