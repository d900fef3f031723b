"""Streams under layer norms, which make something else of a zero: it takes a scale and a shift of zero, too."""

from collections.abc import Callable
from typing import Any

import pytest
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


class Merged(Literal):
    """Batch and heads share an axis, as in fairseq; ``sizes`` says how."""

    def __init__(self, sizes: Callable[[int, int, int], tuple[int, ...]]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        length, batch, width = x.shape
        q, k, v = (
            t.contiguous().view(*self.sizes(length, batch, width)).transpose(0, 1)
            for t in self.qkv(self.norm(x)).split(self.width, 2)
        )
        y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return x + self.out(y.transpose(0, 1).reshape(length, batch, -1))


@pytest.mark.parametrize(
    "sizes",
    [
        lambda length, batch, width: (length, batch * HEADS, WIDTH // HEADS),
        lambda length, batch, width: (length, batch * HEADS, width // HEADS),
        lambda length, batch, width: (length, -1, width // HEADS),
    ],
)
@pytest.mark.parametrize("dead", [{STREAM: [0, 5]}, {"1.attention": [1]}])
def test_heads_that_share_an_axis_with_the_batch_take_any_batch(sizes: Any, dead: dict[str, list[int]]):
    torch.manual_seed(0)
    layers = (nn.Embedding(WORDS, WIDTH), Merged(sizes), layer_norm(), nn.Linear(WIDTH, 3))
    model, x, others = nn.Sequential(*layers).double(), words(), words()[:, :2]
    graph = demp.trace(model, (x,), streams=True)
    killing.kill(model, graph, dead)
    before = [comparing.outputs(model, (each,)) for each in (x, others)]
    assert demp.cut(model, dead, example_inputs=(x,), graph=graph).removed == sum(map(len, dead.values()))
    for wanted, each in zip(before, (x, others), strict=True):
        assert comparing.gap(wanted, comparing.outputs(model, (each,))) < 1e-10


class Own(nn.Module):
    """A layer norm whose scale and shift are what ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.bias.requires_grad_(kind != "frozen")

    def forward(self, x: Tensor) -> Tensor:
        scale = {"computed": self.weight + 1, "buffer": self.scale}.get(self.kind, self.weight)
        return F.layer_norm(x, (WIDTH,), scale, self.bias)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("computed", "layer_norm with a computed scale or shift"),
        ("buffer", "layer_norm whose scale or shift is not trained makes other numbers of zeros"),
        ("frozen", "layer_norm whose scale or shift is not trained makes other numbers of zeros"),
    ],
)
def test_scales_that_cannot_fade_keep_the_stream(kind: str, why: str):
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), Own(kind), nn.Linear(WIDTH, 3))
    graph = demp.trace(model, (words(),), streams=True)
    assert graph.removable() == 0 and f"1.stream: {why} (at 1)" in reasons(graph), reasons(graph)


class Small(nn.Module):
    """``itself``: a sum of the stream and an activation of it."""

    def __init__(self, *, itself: bool, sparse: bool) -> None:
        super().__init__()
        self.embed, self.norm, self.last = nn.Embedding(WORDS, WIDTH, sparse=sparse), layer_norm(), layer_norm()
        self.up, self.down, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 5)
        self.itself = itself

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        if self.itself:
            x = x + self.down(F.gelu(self.up(x)))
            return self.head(self.last(x + F.relu(self.norm(x))))
        return self.head(self.last(x + self.down(F.gelu(self.up(self.norm(x))))))


@pytest.mark.parametrize(("itself", "sparse"), [(True, False), (False, True)])
def test_budgets_with_a_stream_that_meets_itself_and_with_sparse_gradients(itself: bool, sparse: bool):
    torch.manual_seed(0)
    model: Any = Small(itself=itself, sparse=sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options: Any = {"budget": demp.Budget(flops=0.6), "streams": True, "exclude": ("gelu",)}
    pruner = demp.DemP(model, optimizer, example_inputs=(words(),), total_steps=60, **options)
    for _ in range(60):
        model(words()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    assert 0.5 < pruner.flops / pruner.graph.dense.flops() <= 0.6
    drifts = [report.drift for report in pruner.history if report.removed]
    assert drifts and all(drift is not None and drift < 1e-5 for drift in drifts)


class Encoding(nn.Module):
    """Returns scores, and the hidden states that made them; looks at one channel for its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.norm = nn.Embedding(WORDS, WIDTH), Literal(), layer_norm()
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        x = self.embed(words)
        places = torch.arange(x[:, :, -1].shape[1])
        hidden = self.norm(self.block(x))
        return {"scores": self.head(hidden) + places[:, None], "hidden": hidden}


def test_what_does_not_count_of_the_output_may_become_narrower():
    torch.manual_seed(0)
    model, x, outputs = Encoding().double(), words(), lambda out: out["scores"]
    assert "stream: model output" in reasons(demp.trace(model, (x,), streams=True))
    graph = demp.trace(model, (x,), streams=True, outputs=outputs)
    assert bool(graph.layer(STREAM).removable.all())
    killing.kill(model, graph, {STREAM: [3, 4]})
    with torch.no_grad():
        before = model(x)
        report = demp.cut(model, {STREAM: [3, 4]}, example_inputs=(x,), streams=True, outputs=outputs)
        after = model(x)
    assert report.removed == 2 and after["hidden"].shape[-1] == WIDTH - 2
    assert float((after["scores"] - before["scores"]).abs().max()) < 1e-10
    normalised = demp.trace(model, (x,), streams=True, outputs=lambda out: out["hidden"].softmax(-1))
    assert not bool(normalised.layer(STREAM).removable.any())


class Attending(nn.Module):
    """A block with torch's own attention, which asks for the width that it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(), layer_norm()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def test_torchs_own_attention_reads_a_narrower_stream_also_with_one_head_left():
    torch.manual_seed(0)
    layers = (nn.Embedding(WORDS, WIDTH), Attending(), Attending(), layer_norm(), nn.Linear(WIDTH, 3))
    model, x = nn.Sequential(*layers).double(), words()
    for dead in ({STREAM: [0, 7]}, {STREAM: [1], "1.attention.attention": [0]}, {STREAM: [2, 3]}):
        graph = demp.trace(model, (x,), streams=True)
        assert bool(graph.layer(STREAM).removable.all())
        killing.kill(model, graph, dead)
        before, in_training = comparing.outputs(model, (x,)), trained(model, (x,))
        assert demp.cut(model, dead, example_inputs=(x,), graph=graph).removed == sum(map(len, dead.values()))
        assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
        assert comparing.gap(in_training, trained(model, (x,))) < 1e-10
    exported = torch.export.export(model.eval(), (x,)).module()
    assert float((exported(x) - model(x)).detach().abs().max()) < 1e-12


def test_a_norm_that_runs_twice_says_so():
    torch.manual_seed(0)
    norm = layer_norm()
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), norm, nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, 3))
    found = reasons(demp.trace(model, (words(),), streams=True))
    assert "mixes neurons, and a cut can plan it only where its module runs once" in found, found


class Losing(nn.Module):
    """In training it returns a loss alone, which reads all of the hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.first(x).relu()
        out = self.head(self.second(h).relu())
        if self.training:
            return {"loss": out.square().mean() + h.var(-1).mean()}
        return {"logits": out}


@pytest.mark.parametrize("outputs", [None, lambda out: out["logits"]])
def test_what_training_returns_counts_where_outputs_do_not_know_it(outputs: Any):
    graph = demp.trace(Losing(), (torch.randn(5, 4),), outputs=outputs)
    assert graph.removable() == 8 and graph.refused_layers() == {"relu"}


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        (lambda out: out["scores"], "outputs= fails on what the model returns, dict: KeyError"),
        (lambda out: None, "outputs= returns a NoneType without tensors"),
    ],
)
def test_outputs_that_say_nothing_are_refused(outputs: Any, why: str):
    with pytest.raises(demp.errors.UsageError, match=why):
        demp.trace(Losing(), (torch.randn(5, 4),), outputs=outputs)


def test_a_view_that_a_cut_planned_takes_a_batch_of_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), Literal(), layer_norm(), nn.Linear(WIDTH, 3)).double()
    graph = demp.trace(model, (words(),), streams=True)
    killing.kill(model, graph, {STREAM: [2], "1.attention": [0]})
    assert demp.cut(model, {STREAM: [2], "1.attention": [0]}, example_inputs=(words(),), graph=graph).removed == 2
    assert model(words()[:0]).shape == (0, words().shape[1], 3)


class Tabled(nn.Module):
    """Scales of all norms in one table; ``picks``: one channel is read by its number, through a norm over positions."""

    def __init__(self, *, picks: bool) -> None:
        super().__init__()
        self.embed, self.scales = nn.Embedding(WORDS, WIDTH), nn.Parameter(1 + torch.rand(2, WIDTH))
        self.down, self.head, self.picks = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), picks

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        x = x + self.down(F.layer_norm(x, (WIDTH,), self.scales[0]))
        out = self.head(F.layer_norm(x, (WIDTH,), self.scales[1]))
        return out + F.layer_norm(x[:, :, 3], (6,))[..., None] if self.picks else out


def test_scales_in_one_table_fade_with_the_stream():
    torch.manual_seed(0)
    graph = demp.trace(Tabled(picks=False), (words(),), streams=True)
    (layer,) = graph.layers
    assert bool(layer.removable.all()) and ("scales", 1) in layer.producers


def test_a_channel_that_is_read_by_its_number_keeps_the_stream():
    graph = demp.trace(Tabled(picks=True), (words(),), streams=True)
    assert graph.removable() == 0 and "positions of neurons are used" in reasons(graph), reasons(graph)
