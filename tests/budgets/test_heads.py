"""Heads of attention on the way to a budget: weighed beside neurons, faded in what reads them, then removed."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import demp
from attentive import CHANNELS, HEADS, WIDTH, Attention, Block, examples
from demp.regularization import OutputScales, Shrink

NAME = "attention.attention"


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(Block(Attention("unbound")), nn.Linear(5, 40), nn.GELU(), nn.Linear(40, 3)).double()


def test_a_run_lands_with_heads_removed():
    model, x = network(), examples()
    goal = torch.randint(0, 3, (14,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=40, budget=demp.Budget(flops=0.4))
    dense = demp.cost(model, (x,)).flops
    for _ in range(40):
        F.cross_entropy(model(x).flatten(0, 1), goal).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    assert demp.cost(model, (x,)).flops <= 0.4 * dense
    left = model[0].attention.out.weight.shape[1]
    assert left < HEADS * CHANNELS and left % CHANNELS == 0
    assert model[0].attention.qkv.weight.shape == (3 * left, WIDTH)


def test_what_scales_a_head_is_what_reads_it():
    """Its importance is the derivative by a factor on its output; at the factor 0 it is as if it were not there."""
    model: Any = Block(Attention("unbound")).double()
    x = examples()
    graph = demp.trace(model, (x,))
    scales = OutputScales(model, graph)
    classes = graph.layer(NAME).classes
    factors = torch.ones(HEADS, dtype=torch.float64, requires_grad=True)
    out = model.attention.out
    hook = out.register_forward_pre_hook(lambda module, args: (args[0] * factors.repeat_interleave(CHANNELS),))
    model(x).square().mean().backward()
    hook.remove()
    found = scales.sensitivity(graph.dense)
    assert found is not None and factors.grad is not None
    assert float((found[classes] - factors.grad).abs().max()) < 1e-12
    model.zero_grad(set_to_none=True)
    faded = torch.ones(graph.classes, dtype=torch.float64)
    faded[classes[2]] = 0
    scales.apply(Shrink(factors=faded), graph.dense)
    with torch.no_grad():
        before = model(x)
        demp.cut(model, {NAME: [2]}, example_inputs=(x,), graph=graph, exact=False)
        assert float((model(x) - before).abs().max()) < 1e-12
