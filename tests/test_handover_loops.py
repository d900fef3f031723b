"""Handing over in training loops of many kinds: none of them may break by it."""

import pytest
import torch
from torch import nn

import demp

STEPS = 40


def network(width: int = 96) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)),
    )


def plain(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().mean().backward()


def train(model: nn.Module, loop, rate: float = 1e-3) -> tuple[demp.DemP, int]:
    """The pruner at the end, and after how many steps something was handed over."""
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=rate), 0
    pruner = demp.DemP(
        model, optimizer, example_inputs=(torch.zeros(2, 6),), total_steps=STEPS, budget=demp.Budget(neurons=0.5)
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        loop(model, torch.randn(64, 6, generator=torch.Generator().manual_seed(step)))
        optimizer.step()
        steps += bool(pruner.method._course._handovers)
    pruner.finish()
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    return pruner, steps


def overflowing(model: nn.Module, x: torch.Tensor) -> None:
    """The squares of these gradients are more than float32 holds."""
    plain(model, x)
    for parameter in model.parameters():
        parameter.grad *= 1e25


def per_example(model: nn.Module, x: torch.Tensor) -> None:
    parameters = dict(model.named_parameters())

    def loss(values, row):
        return torch.func.functional_call(model, values, (row[None],)).square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].mean(0)


def nested(layout: torch.layout):
    def loop(model: nn.Module, x: torch.Tensor) -> None:
        out = model(torch.nested.nested_tensor([x[:3], x[3:8]], layout=layout))
        torch.nested.to_padded_tensor(out, 0.0).square().mean().backward()

    return loop


LOOPS = {
    "gradients that overflow": overflowing,
    "gradients of each example": per_example,
    "nested": nested(torch.jagged),
    "nested, strided": nested(torch.strided),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", LOOPS)
def test_a_run_lands_whatever_the_loop(name):
    model = network()
    pruner, steps = train(model, LOOPS[name], rate=0.0)
    assert pruner.state.neurons == 96
    assert (steps > 0) == (name == "gradients that overflow")
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
