"""Low-rank adapters on a frozen base (LoRA): both lose the same heads and neurons, and what does not fade is said."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing

WIDTH, HEADS, CHANNELS, HIDDEN, RANK = 16, 4, 4, 12, 2


class LowRank(nn.Module):
    """A frozen linear layer and what two thin ones add to it, as peft wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.normal_(self.lora_B.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 2.0 * self.lora_B(self.lora_A(x))

    def merged(self) -> nn.Linear:
        """One linear layer that gives the same."""
        found = copy.deepcopy(self.base_layer)
        found.weight.data += 2.0 * self.lora_B.weight.data @ self.lora_A.weight.data
        return found


class Block(nn.Module):
    """A block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down, self.last = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(self.norm(x)).unflatten(-1, (-1, CHANNELS)) for each in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return self.last(x + self.down(F.gelu(self.up(self.between(x)))))


WRAPPED = {"query and value": ("q", "v"), "all": ("q", "k", "v", "o", "up", "down")}


def adapted(which: str, *, trained: tuple[str, ...] = ()) -> Any:
    """A frozen block with adapters; the layers ``trained`` are not frozen."""
    torch.manual_seed(0)
    model = Block().requires_grad_(False).double()
    for name in WRAPPED[which]:
        setattr(model, name, LowRank(getattr(model, name)).double())
    for name in trained:
        getattr(model, name).requires_grad_(True)
    return model


def examples(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(model: Any, optimizer: Any, seed: int) -> None:
    x = examples(seed)
    F.cross_entropy(model(x).flatten(0, 1), x[..., :5].argmax(-1).flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("which", WRAPPED)
def test_base_and_adapters_lose_the_same_twice(which: str):
    model = adapted(which)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for left, heads, neurons in ((3, [1], [0, 5]), (1, [0, 2], [3])):
        step(model, optimizer, left)
        graph = demp.trace(model, examples())
        names = {layer.activation: layer.name for layer in graph.layers if bool(layer.removable.any())}
        dead = {names["attention"]: heads, names["gelu"]: neurons}
        killing.kill(model, graph, dead, low=0.0)
        dense = copy.deepcopy(model)
        report = demp.cut(model, dead, example_inputs=examples(), graph=graph, optimizer=optimizer)
        assert report.removed == len(heads) + len(neurons)
        for mode in (True, False):
            gap = (model.train(mode)(examples(9)) - dense.train(mode)(examples(9))).detach().abs().max()
            assert float(gap) < 1e-10
        assert model.v.base_layer.weight.shape == (left * CHANNELS, WIDTH) == (model.v.lora_B.out_features, WIDTH)
        assert not model.v.base_layer.weight.requires_grad and model.v.lora_A.weight.shape == (RANK, WIDTH)
        assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in trainable(model))
        step(model, optimizer, 5)
    wanted = model(examples(9)).detach()
    for name in WRAPPED[which]:
        setattr(model, name, getattr(model, name).merged())
    assert comparing.gap([wanted], comparing.outputs(model, (examples(9),))) < 1e-10


def on_a_budget(model: Any) -> tuple[demp.DemP, str]:
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    budget = demp.Budget(flops=0.7)
    pruner = demp.DemP(model, optimizer, example_inputs=(examples(),), total_steps=20, budget=budget, rounds=2)
    for at in range(20):
        step(model, optimizer, at)
    pruner.finish()
    assert pruner.flops <= 0.7 * pruner.graph.dense.flops()
    return pruner, "\n".join(note for report in pruner.history for note in report.notes)


@pytest.mark.parametrize("which", WRAPPED)
def test_a_budget_says_that_frozen_weights_do_not_fade(which: str):
    model = adapted(which)
    before = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    pruner, notes = on_a_budget(model)
    assert "scaled by frozen weights" in notes and "prune before they are frozen" in notes
    assert max(report.drift or 0.0 for report in pruner.history) > 1e-6
    for name, value in model.named_parameters():  # narrower, and otherwise as it was
        if not value.requires_grad:
            assert torch.isin(value, before[name]).all(), name


def test_a_budget_is_exact_where_what_scales_heads_and_neurons_is_trained():
    pruner, notes = on_a_budget(adapted("query and value", trained=("o", "up")))
    assert "frozen" not in notes
    drifts = [report.drift for report in pruner.history if report.removed]
    assert drifts and all(drift is not None and drift < 1e-10 for drift in drifts)
