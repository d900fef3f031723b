"""Cut neurons that are really dead, and compare what comes out before and after, in evaluation and in training."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import comparing
import demp
import killing
from demp.graph import NeuronGraph


def offered(graph: NeuronGraph) -> dict[str, int]:
    """Layer -> neurons that may go, of layers with any."""
    return {layer.name: int(n) for layer in graph.layers if (n := layer.removable.sum())}


def reasons(graph: NeuronGraph) -> str:
    """All reasons of all refusals in one text."""
    return "\n".join(f"{refusal.name}: {refusal.reason}" for refusal in graph.refused)


@torch.no_grad()
def trained(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Outputs of a copy of the model in training mode, with the same random draws every time."""
    torch.manual_seed(7)
    twin = copy.deepcopy(model).train()
    out = twin(**inputs) if isinstance(inputs, dict) else twin(*inputs)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def cut_twice(
    model: nn.Module, inputs: Any, *, share: float = 0.4, low: float = -100.0, linear: bool = False
) -> list[int]:
    """Kill and cut some neurons, twice; outputs stay in both modes. Returns how many went each time."""
    removed = []
    for seed in range(2):
        graph = demp.trace(model, inputs, linear=linear)
        dead = killing.killed(model, graph, share, seed, low)
        before, in_training = comparing.outputs(model, inputs), trained(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(in_training, trained(model, inputs)) < 1e-10
        assert report.removed == sum(map(len, dead.values())) or report.held
        removed.append(report.removed)
    return removed


def lands_exactly(model: nn.Module, x: Tensor, budget: str, least: int) -> None:
    """Train a little towards a budget: at least so many neurons go, and no cut changes an output."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=60, budget=budget, rounds=2, push_until=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert sum(report.removed for report in pruner.history) >= least
    assert max(report.difference or 0.0 for report in pruner.history if report.removed) < 1e-5
