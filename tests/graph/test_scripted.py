"""Scripted parts are left alone, and lazy modules are asked to run first."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import exactly
from demp.errors import TraceError
from nets import Forward

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def around(part: nn.Module) -> nn.Module:
    """Neurons, a part that reads the second layer, and neurons behind it."""
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 5), "d": nn.Linear(5, 2)}

    def forward(s, x):
        h = s.part(F.relu(s.b(F.relu(s.a(x)))))
        return s.d(F.relu(s.c(h)))

    return Forward(forward, part=part, **layers).double()


def inner(norm: type[nn.Module] = nn.Identity) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 7), norm(7), nn.ReLU(), nn.Linear(7, 8)).double()


PARTS = {
    "scripted": lambda: torch.jit.script(inner(nn.BatchNorm1d)),
    "traced": lambda: torch.jit.trace(inner(), torch.randn(4, 8).double()),
}


@pytest.mark.parametrize("kind", PARTS)
def test_around_a_scripted_part_neurons_go(kind):
    model, x = around(PARTS[kind]()), X.double()
    graph = demp.trace(model, (x,))
    assert exactly.offered(graph) == {"relu": 8, "relu#3": 5}
    assert "relu#2: read by part, which is TorchScript" in exactly.reasons(graph)
    before = {name: tensor.clone() for name, tensor in model.part.state_dict().items()}
    assert all(exactly.cut_twice(model, (x,)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.part.state_dict().items())
    assert isinstance(model.part, torch.jit.ScriptModule) and model.b.out_features == 8


def test_a_run_with_a_scripted_part():
    model, x = around(PARTS["scripted"]()).float(), torch.randn(16, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=20, budget="neurons=0.7", rounds=1)
    for _ in range(20):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert sum(report.removed for report in pruner.history) > 0 and model.part(torch.randn(2, 8)).shape == (2, 8)


def test_a_scripted_model_is_refused():
    with pytest.raises(TraceError, match="prune the module that it was made of"):
        demp.trace(torch.jit.script(inner()), (torch.randn(4, 8).double(),))


def test_a_lazy_model_must_run_first():
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    optimizer, inputs = torch.optim.SGD(model.parameters(), 0.1), (torch.randn(3, 2, 5, 5),)
    with pytest.raises(TraceError, match=r"0\.weight and \d+ more.*Run one batch through the model"):
        demp.trace(model, inputs)
    with pytest.raises(TraceError, match="Run one batch"):
        demp.DemP(model, optimizer, example_inputs=inputs, total_steps=10)
    model(*inputs)
    assert exactly.offered(demp.trace(model, inputs)) == {"2": 6}
    demp.DemP(model, optimizer, example_inputs=inputs, batches=[inputs], total_steps=10)
    model, inputs = model.double(), (inputs[0].double(),)
    assert all(exactly.cut_twice(model, inputs))
    assert comparing.outputs(model, inputs)[0].shape == (3, 2)
