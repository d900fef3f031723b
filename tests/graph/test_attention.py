"""Heads of attention are neurons: however they are spelled, a dead one goes whole, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import comparing
import demp
import killing
from attentive import CHANNELS, HEADS, SPELLINGS, WIDTH, Attention, Block, Gated, examples
from demp.graph.multihead import attended

NAME = "attention.attention"


def made(attention: nn.Module) -> Any:
    return Block(attention).double()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "two products"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_dead_heads_go_whole(spelling: str, fused: bool):
    model, x = made(Attention(spelling, fused=fused)), examples()
    graph = demp.trace(model, (x,))
    layer = graph.layer(NAME)
    assert (layer.activation, layer.width, int(layer.removable.sum())) == ("attention", HEADS, HEADS)
    dead = {NAME: [0, 2]}
    killing.kill(model, graph, dead)
    before, longer = comparing.outputs(model, (x,)), examples(11)
    expected = comparing.outputs(model, (longer,))
    dense = graph.dense.flops()
    report = demp.cut(model, dead, example_inputs=(x,), graph=graph)
    assert report.removed == 2
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12
    assert comparing.gap(expected, comparing.outputs(model, (longer,))) < 1e-12
    attention = model.attention
    made_by = [p for name, p in attention.named_parameters() if name.endswith("weight") and name != "out.weight"]
    assert sum(len(p) for p in made_by) == 3 * 2 * CHANNELS and attention.out.weight.shape == (WIDTH, 2 * CHANNELS)
    again = demp.trace(model, (x,))
    assert again.layer(NAME).width == 2
    narrow, all_positions = again.dense.flops(), 2 * 7
    of_a_head = 2 * all_positions * (4 * WIDTH * CHANNELS + 2 * 7 * CHANNELS)
    assert dense - narrow == 2 * of_a_head
    if not fused:
        with FlopCounterMode(display=False) as counter:
            comparing.outputs(model, (x,))
        assert narrow == counter.get_total_flops()


class Passing(Attention):
    """Makes zeros in place of a bias that it does not have, or takes those of another layer, as T5 does."""

    def forward(self, x: Tensor, more: Tensor | None = None) -> Any:
        q, k, v = self.heads(x)
        scores = q @ k.transpose(-2, -1)
        more = torch.zeros(1, *scores.shape[1:], dtype=x.dtype) if more is None else more
        return self.out(((scores + more).softmax(-1) @ v).transpose(1, 2).flatten(2)), more


class Filled(nn.Module):
    """Two layers of heads that one tensor of zeros is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Passing(), Passing()

    def forward(self, x: Tensor) -> Tensor:
        out, zeros = self.first(x)
        return self.second(x + out, zeros)[0]


def test_heads_that_meet_one_tensor_of_zeros_keep_one_width():
    model, x = made(Filled()), examples()
    graph = demp.trace(model, (x,))
    first, second = (graph.layer(f"attention.{name}.attention") for name in ("first", "second"))
    assert first.classes.equal(second.classes) and int(first.removable.sum()) == HEADS
    dead = {layer.name: [2] for layer in (first, second)}
    killing.kill(model, graph, dead)
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, dead, example_inputs=(x,), graph=graph).removed == 2
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12


class Shaped(Attention):
    """With a tensor that counts heads by an attribute, which no view does."""

    def mask(self, scores: Tensor) -> Tensor:
        return torch.zeros(1, self.num_heads, *scores.shape[-2:], dtype=scores.dtype)


def test_an_attribute_that_counts_heads_follows_where_a_plan_does_not_do():
    model, x = made(Shaped(fused=False)), examples()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {NAME: [1]})
    before = comparing.outputs(model, (x,))
    demp.cut(model, {NAME: [1]}, example_inputs=(x,), graph=graph)
    assert model.attention.num_heads == 3 and comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_key_that_several_queries_share_goes_with_all_of_them(groups: int, fused: bool, training: bool):
    model, x = made(Attention(fused=fused, groups=groups)).train(training), examples()
    graph = demp.trace(model, (x,))
    layer = graph.layer(NAME)
    if groups == 1:  # heads of the query alone: tests/graph/test_shared_keys.py
        assert (layer.width, int(layer.removable.sum())) == (
            HEADS,
            HEADS if fused else 0,
        )  # else by a number in the code
        assert not any(slot.tensor.startswith(("attention.k.", "attention.v.")) for slot in graph.slots)
        return
    assert (layer.width, int(layer.removable.sum())) == (groups, groups)
    killing.kill(model, graph, {NAME: [1]})
    before = model(x).detach()
    demp.cut(model, {NAME: [1]}, example_inputs=(x,), graph=graph)
    assert float((before - model(x)).detach().abs().max()) < 1e-12
    assert model.attention.q.weight.shape[0] == 2 * CHANNELS and model.attention.k.weight.shape[0] == CHANNELS


@pytest.mark.parametrize("fused", [True, False])
def test_a_constant_value_leaves_with_its_constant(fused: bool):
    model, x = made(Attention(fused=fused)), examples()
    with torch.no_grad():
        model.attention.v.weight[:CHANNELS] = 0  # rows of attention sum to one: the head gives its value's bias
    before = comparing.outputs(model, (x,))
    longer = examples(9)
    expected = comparing.outputs(model, (longer,))
    report = demp.cut(model, {NAME: [0]}, example_inputs=(x,), constants=True)
    assert report.removed == 1 and report.drift is not None and report.drift < 1e-12
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12
    assert comparing.gap(expected, comparing.outputs(model, (longer,))) < 1e-12


class Biased(Attention):
    """With a bias for every head, from a table that is trained."""

    def __init__(self) -> None:
        super().__init__(fused=False)
        self.table = nn.Parameter(torch.randn(13, HEADS))

    def mask(self, scores: Tensor) -> Tensor:
        at = torch.arange(scores.shape[-1])
        return F.embedding(at[:, None] - at[None, :] + 6, self.table).permute(2, 0, 1)[None]


class Sloped(Attention):
    """With a slope for every head that its number decides (ALiBi)."""

    def mask(self, scores: Tensor) -> Tensor:
        slopes = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
        return -slopes[:, None, None] * torch.arange(scores.shape[-1], dtype=scores.dtype)


def test_a_bias_for_every_head_goes_with_it():
    model, x = made(Biased()), examples()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {NAME: [3]})
    before = comparing.outputs(model, (x,))
    demp.cut(model, {NAME: [3]}, example_inputs=(x,), graph=graph)
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12 and model.attention.table.shape == (13, 3)


def test_slopes_that_go_by_the_number_of_the_head_keep_it():
    graph = demp.trace(made(Sloped(fused=False)), (examples(),))
    assert not bool(graph.layer(NAME).removable.any())
    assert any(r.name == NAME and r.reason.startswith("add with a tensor that has no neurons") for r in graph.refused)


class Masked(Attention):
    """Whose mask is made by neurons, one for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.values = nn.Linear(WIDTH, 7), False

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        mask = F.relu(self.bias(x.mean(1)))[:, None, None, :]
        if self.values and not bool(x.isfinite().all()):  # a forward that looks at values is traced on real ones
            raise ValueError
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("vehicle", ["meta", "eager"])
def test_neurons_that_make_a_mask_stay(vehicle: str):
    model = made(Masked()).requires_grad_(False)
    model.attention.values = vehicle == "eager"
    graph = demp.trace(model, (examples(),))
    assert graph.vehicle == vehicle and int(graph.layer(NAME).removable.sum()) == HEADS
    assert not bool(graph.layer("attention.relu").removable.any())
    (why,) = [refusal.reason for refusal in graph.refused if refusal.name == "attention.relu"]
    assert ("of its mask" if vehicle == "eager" else "add with a tensor") in why


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_heads_that_are_left_take_the_steps_of_a_twin_that_keeps_all(kind: Any):
    x, goal = examples(), torch.randn(2, 7, 5, dtype=torch.float64)
    twin = made(Gated())
    model = made(Attention())
    model.load_state_dict(twin.state_dict())
    steps = [kind(net.parameters(), lr=0.01) for net in (model, twin)]

    def step() -> None:
        for net, optimizer in zip((model, twin), steps, strict=True):
            F.mse_loss(net(x), goal).backward()
            optimizer.step()
            optimizer.zero_grad()

    step()
    twin.attention.factors[[0, 3]] = 0
    demp.cut(model, {NAME: [0, 3]}, example_inputs=(x,), optimizer=steps[0], exact=False)
    for _ in range(3):
        step()
    left = slice(CHANNELS, 3 * CHANNELS)
    for name in ("q", "k", "v"):
        ours, theirs = getattr(model.attention, name).weight, getattr(twin.attention, name).weight
        assert float((ours - theirs[left]).detach().abs().max()) < 1e-12
    assert float((model.attention.out.weight - twin.attention.out.weight[:, left]).detach().abs().max()) < 1e-12
    assert float((model.head.weight - twin.head.weight).detach().abs().max()) < 1e-12


class Torch(nn.Module):
    """Attention of torch's own module; ``used``: its weights of attention reach the output."""

    def __init__(self, *, batch_first: bool = True, bias: bool = True, used: bool = False, **options: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first, **options)
        self.head, self.used, self.call = nn.Linear(WIDTH, 5), used, {}

    def forward(self, x: Tensor) -> Any:
        h = self.norm(x)
        out, weights = self.attention(h, h, h, **self.call)
        return (self.head(x + out), weights) if self.used else self.head(x + out)


CALLS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "without weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": torch.arange(7).expand(2, 7) > 4, "need_weights": False},
    "a mask": {"attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(1)},
    "causal": {"attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(1), "is_causal": True, "need_weights": False},
    "both": {"attn_mask": torch.ones(7, 7).triu(1).bool(), "key_padding_mask": torch.arange(7).expand(2, 7) > 4},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_attention_of_torch(name: str, training: bool):
    model: Any = Torch(bias=name != "a mask").double().train(training)
    model.call = CALLS[name]
    x = examples()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {NAME: [1]})
    before = comparing.outputs(model, (x,))
    demp.cut(model, {NAME: [1]}, example_inputs=(x,), graph=graph)
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12
    assert model.attention.in_proj_weight.shape == (3 * 3 * CHANNELS, WIDTH)
    again = demp.trace(model, (x,))
    assert int(again.layer(NAME).removable.sum()) == 3
    demp.cut(model, {NAME: [0]}, example_inputs=(x,), graph=again, exact=False)
    model(x).sum().backward()
    assert model.attention.in_proj_weight.grad.shape == (3 * 2 * CHANNELS, WIDTH)


@pytest.mark.parametrize("shape", [(7, 2, WIDTH), (7, WIDTH)])
@pytest.mark.parametrize("call", [{}, {"average_attn_weights": False}, {"need_weights": False}])
def test_our_own_attention_is_that_of_torch(shape: tuple[int, ...], call: dict[str, Any]):
    module, x = nn.MultiheadAttention(WIDTH, HEADS).double().eval(), torch.randn(shape).double()
    with torch.no_grad():
        expected = module(x, x, x, **call)
        weights = (module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0)
        out = module.out_proj
        found = attended((x, x, x, WIDTH, HEADS, *weights, out.weight, out.bias), {"training": False, **call})
    assert float((found[0] - expected[0]).abs().max()) < 1e-12
    assert (found[1] is None) == (expected[1] is None)
    if found[1] is not None and expected[1] is not None:
        assert found[1].shape == expected[1].shape and float((found[1] - expected[1]).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"used": True}, "model output"),
        ({"add_bias_kv": True}, "heads of attention with bias_k and bias_v"),
        ({"add_zero_attn": True}, "heads of attention with add_zero_attn"),
    ],
)
def test_attention_of_torch_that_keeps_its_heads(options: dict[str, Any], reason: str):
    model, x = Torch(**options).double(), examples()
    graph = demp.trace(model, (x,))
    assert graph.removable() == 0 and any(reason in refusal.reason for refusal in graph.refused)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True).double()
    offered = [one.activation for one in demp.trace(layer, (x,)).layers if bool(one.removable.any())]
    assert offered == ["relu"]  # its fused inference takes heads as they were
