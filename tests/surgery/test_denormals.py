"""Moments of dead neurons never become denormal, and nothing else changes."""

import torch
from torch import nn

from demp.surgery.denormals import EVERY_STEPS, TINY, sweep

SMALLEST = torch.finfo(torch.float32).tiny


def test_a_decaying_momentum_is_zero_before_it_is_denormal():
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.tensor([1.0, 1.0, 1e-3, 0.0])
    optimizer.step()
    weight.grad.zero_()
    for step in range(1, 1500):
        optimizer.step()
        momentum = optimizer.state[weight]["momentum_buffer"]
        if step % EVERY_STEPS == 0:
            sweep([optimizer])
        assert not bool(((momentum != 0) & (momentum.abs() < SMALLEST)).any())
    assert momentum.tolist() == [0.0] * 4


def test_larger_entries_scalars_and_other_types_stay():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state[weight]
    state["exp_avg"] = torch.tensor([2 * TINY, TINY / 2, -TINY / 2])
    before = state["exp_avg_sq"].clone()
    assert sweep([optimizer]) == 2
    assert state["exp_avg"].tolist() == [torch.tensor(2 * TINY).item(), 0.0, 0.0]
    assert torch.equal(state["exp_avg_sq"], before) and float(state["step"]) == 1.0
