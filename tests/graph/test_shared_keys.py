"""Attention whose heads share one key and value: heads of the query leave alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from exactly import reasons
from leaving import transformers

HEADS, CHANNELS = 4, 4
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": 1, "head_dim": CHANNELS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def language_model(family: str, way: str = "sdpa") -> Any:
    torch.manual_seed(0)
    if family == "GPTBigCode":
        sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": HEADS, "n_positions": 32, "multi_query": True}
        rest = {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "attn_pdrop": 0,
            "resid_pdrop": 0,
            "embd_pdrop": 0,
        }
        config = transformers.GPTBigCodeConfig(**sizes, **rest, attn_implementation=way)
    else:
        config = getattr(transformers, f"{family}Config")(**SIZES, attn_implementation=way)
    return getattr(transformers, f"{family}ForCausalLM")(config).double().eval()


def words(seed: int = 0) -> Tensor:
    return torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def unread(model: Any, graph: Any, heads: dict[str, list[int]]) -> None:
    """Nothing reads these heads any more: their keys and values are those of all others, and live on."""
    dying = killing.classes_of(graph, heads)
    for read in graph.reads:
        positions = dying[read.classes].nonzero().flatten()
        comparing.tensors_of(model)[read.weight].index_fill_(read.weight_axis, positions, 0.0)


def attention(graph: Any) -> list[str]:
    return [layer.name for layer in graph.layers if layer.activation == "attention"]


@pytest.mark.parametrize(
    ("family", "way"),
    [("Llama", "sdpa"), ("Llama", "eager"), ("Gemma", "sdpa"), ("GPTBigCode", "sdpa"), ("GPTBigCode", "eager")],
)
def test_heads_that_nothing_reads_go_exactly_in_both_modes(family: str, way: str):
    model, x = language_model(family, way), words()
    first, second = attention(demp.trace(model, x))
    for heads in ({first: [1], second: [0, 3]}, {first: [0, 2], second: [1]}):
        graph = demp.trace(model, x)
        unread(model, graph, heads)
        before = [model.train(mode)(x).logits.detach() for mode in (True, False)]
        report = demp.cut(model, heads, example_inputs=x, graph=graph, exact=False)
        assert report.removed == 3 and report.drift is not None and report.drift < 1e-12
        for mode, wanted in zip((True, False), before, strict=True):
            assert float((model.train(mode)(x).logits - wanted).detach().abs().max()) < 1e-10
    out = [
        tensor for name, tensor in model.named_parameters() if name.endswith(("o_proj.weight", "attn.c_proj.weight"))
    ]
    assert [tuple(tensor.shape) for tensor in out] in ([(16, CHANNELS)] * 2, [(CHANNELS, 16)] * 2)


@pytest.mark.parametrize("family", ["Llama", "GPTBigCode"])
def test_generation_goes_on_with_the_one_key(family: str):
    model, x = language_model(family), words()
    graph = demp.trace(model, x)
    heads = {name: [1] for name in attention(graph)}
    unread(model, graph, heads)
    asked = {"attention_mask": torch.ones_like(x), "max_new_tokens": 6, "do_sample": False}
    written = model.generate(x, **asked)
    assert demp.cut(model, heads, example_inputs=x, graph=graph, exact=False).removed == 2
    for choice in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(x, **asked, **choice), written)


def test_a_folder_says_how_many_heads_are_left(tmp_path: Any):
    model, x = language_model("Llama"), words()
    graph = demp.trace(model, x)
    heads = {name: [0, 2] for name in attention(graph)}
    unread(model, graph, heads)
    demp.cut(model, heads, example_inputs=x, graph=graph, exact=False)
    report = demp.export(model, tmp_path / "out", to="safetensors", example_inputs=x)
    assert report.loads_with == "transformers", report.notes
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == (2, 1)
    assert float((loaded(x).logits - model(x).logits).detach().abs().max()) < 1e-10


class Own(nn.Module):
    """Attention by hand with one key and value; ``spelling`` says how all heads get it."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.num_heads = spelling, HEADS
        self.q, self.kv, self.out = nn.Linear(6, HEADS * CHANNELS), nn.Linear(6, 2 * CHANNELS), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, CHANNELS)).transpose(1, 2)
        k, v = (t.unsqueeze(1) for t in self.kv(x).chunk(2, -1))
        if self.spelling == "broadcast":
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        elif self.spelling == "counted":
            y = F.scaled_dot_product_attention(q, *(t.expand(-1, self.num_heads, -1, -1) for t in (k, v)))
        elif self.spelling == "as many":
            y = F.scaled_dot_product_attention(q, *(t.expand(-1, q.shape[1], -1, -1) for t in (k, v)))
        elif self.spelling == "a number":
            y = F.scaled_dot_product_attention(q, *(t.expand(-1, HEADS, -1, -1) for t in (k, v)))
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("spelling", ["broadcast", "counted", "as many", "grouped"])
def test_spellings_of_one_key_for_all(spelling: str):
    torch.manual_seed(0)
    model, x = Own(spelling).double(), torch.randn(3, 7, 6, dtype=torch.float64)
    graph = demp.trace(model, x)
    (name,) = attention(graph)
    unread(model, graph, {name: [0, 2]})
    before = model(x).detach()
    assert demp.cut(model, {name: [0, 2]}, example_inputs=x, graph=graph, exact=False).removed == 2
    assert model.q.weight.shape == (2 * CHANNELS, 6) and model.kv.weight.shape == (2 * CHANNELS, 6)
    assert float((model(x) - before).detach().abs().max()) < 1e-12


def test_a_number_of_heads_in_the_code_keeps_them():
    graph = demp.trace(Own("a number").double(), torch.randn(3, 7, 6, dtype=torch.float64))
    assert graph.removable() == 0 and "the forward has this width written into it" in reasons(graph), reasons(graph)


class Picked(nn.Module):
    """Two keys for four heads, by an index, which hands on no neurons: they are not one key."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.n_rep = HEADS, 2
        self.q, self.kv, self.out = nn.Linear(6, HEADS * CHANNELS), nn.Linear(6, 4 * CHANNELS), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, CHANNELS)).transpose(1, 2)
        k, v = (t.unflatten(-1, (-1, CHANNELS)).transpose(1, 2) for t in self.kv(x).chunk(2, -1))
        index = torch.arange(self.num_heads) // self.n_rep
        y = F.scaled_dot_product_attention(q, k[:, index], v[:, index])
        return self.out(y.transpose(1, 2).flatten(2))


def test_several_keys_without_neurons_are_not_one():
    graph = demp.trace(Picked().double(), torch.randn(3, 7, 6, dtype=torch.float64))
    assert attention(graph) == [], reasons(graph)


class Repeated(nn.Module):
    """Ordinary attention, as often as a number says that only sounds like one of heads."""

    def __init__(self, many: int) -> None:
        super().__init__()
        self.n_rep, self.qkv, self.out = many, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n_rep):
            q, k, v = self.qkv(x).unflatten(-1, (3, -1, CHANNELS)).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x


@pytest.mark.parametrize("many", [3, HEADS])
def test_a_number_that_sounds_like_one_of_heads_stays(many: int):
    graph = demp.trace(Repeated(many), torch.randn(2, 5, 16))
    assert graph.removable() > 0 and not graph.attributes


def test_a_budget_removes_heads_of_the_query():
    model: Any = language_model("Llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    budget = demp.Budget(flops=0.8)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(words(),), total_steps=12, budget=budget, rounds=2, exclude=("*.mlp.*",)
    )
    for step in range(12):
        x = words(step)
        F.cross_entropy(model(x).logits.flatten(0, 1), x.roll(1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    assert pruner.flops <= 0.8 * pruner.graph.dense.flops()
    assert sum(layer.self_attn.q_proj.weight.shape[0] for layer in model.model.layers) < 2 * HEADS * CHANNELS
    assert all(layer.self_attn.k_proj.weight.shape[0] == CHANNELS for layer in model.model.layers)
    drifts = [report.drift for report in pruner.history if report.removed]
    assert drifts and all(drift is not None and drift < 1e-10 for drift in drifts)
