"""Handing over in training loops of many kinds: none of them may break by it."""

import copy

import pytest
import torch
from torch import nn

import demp
from demp.importance import redundancy

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


@pytest.mark.parametrize(("batches", "handed"), [(1, False), (3, False), (4, True)])
def test_few_rows_tell_nothing_and_those_of_one_step_count_together(batches, handed):
    def in_parts(model: nn.Module, x: torch.Tensor) -> None:
        for part in x[: 4 * batches].split(4):
            plain(model, part)

    assert (train(network(), in_parts)[1] > 0) == handed


def run(total: int, act=lambda step, pruner, model: None, **options) -> tuple[nn.Module, nn.Module, demp.DemP]:
    """A dense network of twins, the one that lost one of each at rate 0, and the pruner; ``act`` before every step."""
    model = network(16).double()
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = 2 * model[0].weight[:8], 2 * model[0].bias[:8]
    dense = copy.deepcopy(model)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.0), torch.zeros(2, 6, dtype=torch.float64)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(x,), total_steps=total, budget=demp.Budget(neurons=24), exclude=("3",),
        push_from=0.1, push_until=0.5, **options,
    )  # fmt: skip
    while pruner.step < pruner.total_steps:
        act(pruner.step, pruner, model)
        optimizer.zero_grad()
        plain(model, batch(pruner.step))
        optimizer.step()
    return dense, model, pruner


def batch(seed: int) -> torch.Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("total", [30, 40, 80])
def test_a_run_that_takes_another_length_hands_over_once(total, monkeypatch):
    monkeypatch.setattr(redundancy, "RIDGE", 1e-10)
    dense, model, pruner = run(40, lambda step, pruner, _: pruner.plan(total) if step == 12 else None, rounds=1)
    assert pruner.state.neurons == 24
    torch.testing.assert_close(model(batch(99)), dense(batch(99)), atol=1e-5, rtol=0)


def test_a_period_whose_check_had_to_wait_hands_over(monkeypatch):
    monkeypatch.setattr(redundancy, "RIDGE", 1e-10)
    held = []

    def hold(step: int, pruner: demp.DemP, model: nn.Module) -> None:
        held[:] = [model[0](batch(0)).sum()] if step % 3 else []

    dense, model, pruner = run(40, hold, rounds=4)
    assert [report.step for report in pruner.history if report.happened] == [10, 13, 16, 22]
    torch.testing.assert_close(model(batch(99)), dense(batch(99)), atol=1e-5, rtol=0)


def test_neurons_that_frozen_weights_scale_hand_over_when_they_go(monkeypatch):
    """They do not fade, and others that say the same beside them would say it twice."""
    monkeypatch.setattr(redundancy, "RIDGE", 1e-10)
    outputs = []

    def freeze(step: int, pruner: demp.DemP, model: nn.Module) -> None:
        model[0].requires_grad_(False)
        outputs.append(model(batch(99)).detach())

    dense, model, pruner = run(40, freeze, rounds=2)
    assert pruner.state.neurons == 24
    for out in (*outputs, model(batch(99))):
        torch.testing.assert_close(out, dense(batch(99)), atol=1e-5, rtol=0)


def test_weights_that_are_frozen_meanwhile_stay_as_they_are():
    seen = []

    def freeze(step: int, pruner: demp.DemP, model: nn.Module) -> None:
        if step == 10:
            model[2].requires_grad_(False)
        if 10 <= step < 20:
            seen.append((model[2].weight.detach().clone(), model[2].bias.detach().clone()))

    run(40, freeze, rounds=1)
    assert len(seen) == 10 and all(torch.equal(*pair) for one in seen[1:] for pair in zip(seen[0], one, strict=True))
