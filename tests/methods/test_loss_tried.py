"""The loss that a method scores by is tried on the first of the batches when the pruner is built."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp

X, Y = torch.randn(8, 6), torch.randint(3, (8,))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def build(batches, loss_fn, model=None, method="early-crop-s"):
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"example_inputs": (X[:2],), "total_steps": 40, "budget": demp.Budget(flops=0.5)}
    return demp.methods.create(method, model, optimizer, batches=batches, loss_fn=loss_fn, **given)


@pytest.mark.parametrize(
    ("batches", "loss_fn", "message"),
    [
        ([X], F.cross_entropy, r"every one of batches must be a pair \(inputs, targets\)"),
        ([(X,)], F.cross_entropy, r"every one of batches must be a pair \(inputs, targets\)"),
        (
            [(X, torch.randn(8, 7))],
            F.cross_entropy,
            "loss_fn fails on the first of batches .*the model's output",
        ),
        ([(X, Y)], lambda out, y: F.cross_entropy(out, y, reduction="none"), "a tensor of one number"),
        ([(X, Y)], lambda out, y: 0.5, "a tensor of one number"),
        ([(X[:, :5], Y)], F.cross_entropy, "Sequential does not run on the examples"),
    ],
)
@pytest.mark.parametrize("method", ["early-crop-s", "snap"])
def test_a_loss_that_cannot_be_measured_is_refused_when_the_pruner_is_built(batches, loss_fn, message, method):
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(demp.UsageError, match=message):
        build(batches, loss_fn, model, method)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    build([(X, Y)], F.cross_entropy, model)  # nothing is left on the model that would be in the way


def test_a_loss_that_can_be_measured_leaves_no_trace():
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    torch.manual_seed(0)
    drawn, seen = torch.get_rng_state(), []
    build([(X, Y)], lambda out, y: seen.append(out.requires_grad) or F.cross_entropy(out, y), model)
    assert seen == [False] and model.training and dict(model.named_buffers())["1.num_batches_tracked"] == 0
    assert torch.equal(torch.get_rng_state(), drawn)
