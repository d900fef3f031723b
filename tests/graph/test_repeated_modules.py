"""Modules that run several times, or that chance leaves out of a training forward: what a cut can plan in them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from width_cases import Given

import attentive
import demp
import exactly
import nets
from demp.graph.calls import model_calls
from nets import Forward

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("spelling", ["inferred", "numbered", "packed", "literal"])
def test_heads_of_a_block_that_runs_once_per_layer(spelling):
    """As in ALBERT: what the calls of the first run are, those of every other run are, too."""
    parts = {"norm": nn.LayerNorm(attentive.WIDTH), "attention": attentive.Attention(spelling, fused=False)}
    layer = Forward(lambda s, x: x + s.attention(s.norm(x)), **parts)
    model, inputs = Forward(lambda s, x: s.layer(s.layer(x)), layer=layer).double(), (attentive.examples(),)
    offered = exactly.offered(demp.trace(model, inputs))
    assert offered == {"layer.attention.attention": 4, "layer.attention.attention#2": 4}
    assert all(exactly.cut_twice(model, inputs))
    assert layer.attention.out.in_features < 4 * attentive.CHANNELS


def parts(s, h):
    """Unequal parts of the neurons that it makes itself."""
    a, b = F.relu(s.make(h)).split((3, 5), 1)
    return s.one(a) + s.two(b)


def shared() -> nn.Module:
    return Forward(parts, make=nn.Linear(6, 8), one=nn.Linear(3, 6), two=nn.Linear(5, 6))


def test_one_plan_serves_every_run():
    model = nets.settle(Given(lambda s, x: s.head(s.part(s.part(x))), part=shared(), head=nn.Linear(6, 2)))
    assert exactly.offered(demp.trace(model, (X,)))["part.relu"] == 8
    assert all(exactly.cut_twice(model, (X,)))
    (plan,) = model_calls(model)["part"].values()
    assert plan.calls == 1 and sum(plan.sizes) == model.part.make.out_features < 8
    for other in (copy.deepcopy(model), torch.fx.symbolic_trace(model), torch.export.export(model, (X,)).module()):
        assert float((model(X) - other(X)).detach().abs().max()) < 1e-12


def test_runs_that_differ_keep_what_they_split():
    def forward(s, h, *, first):
        return parts(s, h) if first else s.one(F.relu(s.make(h))[:, 5:])

    part = Forward(forward, make=nn.Linear(6, 8), one=nn.Linear(3, 6), two=nn.Linear(5, 6))
    twice = Forward(lambda s, x: s.head(s.part(s.part(x, first=True), first=False)), part=part, head=nn.Linear(6, 2))
    graph = demp.trace(nets.settle(twice), (X,))
    assert graph.calls == () and "part.relu" not in exactly.offered(graph)


def dropping(share: float) -> nn.Module:
    """Blocks that a training step leaves out at random, as LayerDrop does."""

    def forward(s, x):
        for block in s.blocks:
            if not (s.training and torch.rand([]) < share):
                x = x + block(x)
        return s.head(x)

    return nets.settle(Forward(forward, blocks=nn.ModuleList([shared() for _ in range(3)]), head=nn.Linear(6, 2)))


def test_blocks_that_chance_leaves_out_are_followed_when_they_run():
    model = dropping(0.4)
    offered = exactly.offered(demp.trace(model, (X,)))
    assert offered == {f"blocks.{n}.relu": 8 for n in range(3)}
    assert all(exactly.cut_twice(model, (X,)))


def test_blocks_that_training_never_runs_keep_what_they_split():
    graph = demp.trace(dropping(1.0), (X,))
    assert graph.calls == () and graph.removable() == 0
