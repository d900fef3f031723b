"""Training after a cut of saturated neurons: a dense network with constants takes the same steps."""

import copy

import pytest
import torch
from test_constants import CONSTANTS, constant_neurons, cut
from torch import Tensor, nn, optim
from torch.nn import functional as F

import demp


class Replaced(nn.Module):
    """A dense network whose saturated neurons are constants and whose readers do not learn from them."""

    def __init__(self, model: nn.Sequential, neurons: list[int], normed: bool) -> None:
        super().__init__()
        self.model, self.neurons, self.normed = model, neurons, normed
        self.stays = torch.ones(6, dtype=torch.float64)
        self.stays[neurons] = 0.0
        self.frozen = model[2][0].weight.detach().clone() if normed else model[2].weight.detach().clone()
        self.values = torch.zeros(6, dtype=torch.float64)
        for neuron in neurons:
            self.values[neuron] = F.gelu(torch.tensor(CONSTANTS[neuron], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.model[1](self.model[0](x)) * self.stays
        reader = self.model[2][0] if self.normed else self.model[2]
        y = reader(x) + self.frozen @ self.values
        return self.model[2][1](y) if self.normed else y


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=0.05, momentum=0.9), lambda p: optim.Adam(p, lr=0.01)])
def test_a_dense_network_with_constants_takes_the_same_steps(normed, make):
    reader = nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)) if normed else nn.Linear(6, 3)
    model, inputs = constant_neurons(reader)
    dense, neurons = copy.deepcopy(model), list(CONSTANTS)
    twin = Replaced(dense, neurons, normed)
    runs = []
    for net in (model, twin):
        parameters = (net if net is model else dense).parameters()
        runs.append((net, make([p for p in parameters])))

    def step(net: nn.Module, optimizer: optim.Optimizer, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        x, y = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (4, 3))
        net.train()
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        for group in optimizer.param_groups:  # what makes the constant neurons stands still in both
            for p in group["params"]:
                if p.grad is not None and p.shape[0] == 6 and p.grad.shape == p.shape:
                    p.grad[neurons] = 0.0
        optimizer.step()
        return loss.item()

    report = demp.cut(model, {"1": neurons}, example_inputs=inputs, constants=True, optimizer=runs[0][1])
    assert report.removed == 3
    small_step = lambda number: step_small(runs[0], number)  # noqa: E731

    def step_small(run: tuple[nn.Module, optim.Optimizer], number: int) -> float:
        net, optimizer = run
        generator = torch.Generator().manual_seed(number)
        x, y = (torch.randn(16, n, generator=generator, dtype=torch.float64) for n in (4, 3))
        net.train()
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    for number in range(6):
        assert small_step(number) == pytest.approx(step(*runs[1], number), abs=1e-10)
    stay = [i for i in range(6) if i not in neurons]
    for part in ("0.weight", "0.bias"):
        assert (dense.get_parameter(part)[stay] - model.get_parameter(part)).abs().max() < 1e-10


def test_moments_stay_where_constants_go():
    model, inputs = constant_neurons(nn.Linear(6, 3))
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    F.mse_loss(model(*inputs), torch.zeros(8, 3, dtype=torch.float64)).backward()
    optimizer.step()
    optimizer.zero_grad()
    moments = optimizer.state[model[2].bias]["exp_avg"].clone()
    cut(model, inputs, optimizer=optimizer)
    assert torch.equal(optimizer.state[model[2].bias]["exp_avg"], moments)
    assert optimizer.state[model[2].weight]["exp_avg"].shape == (3, 3)
