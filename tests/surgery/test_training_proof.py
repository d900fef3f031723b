"""A cut is proven in training mode, too: batch statistics, no dropout, nothing left behind; and where it cannot be."""

import random

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import killing
import nets
from demp.surgery import training_proof


class Net(nn.Module):
    """Its training forward adds something that no graph shows."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.fc, self.norm, self.head = kind, nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)
        self.drop, self.last = nn.Dropout(0.5), nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros((), dtype=dtype))
        self.calls = 0

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        h = torch.relu(self.norm(self.fc(x)))
        y = self.head(self.drop(h))
        if not self.training:
            return y
        self.seen += 1
        self.calls += 1
        if "counts" in self.kind:
            y = y * torch.tensor(1 + h.shape[1]).to(y)
        if "chaos" in self.kind:
            y = torch.sigmoid(y) * (1 + h.shape[1] * torch.finfo(h.dtype).eps)
            for _ in range(200):
                y = 4 * y * (1 - y)
        if "fails" in self.kind and h.shape[1] == 10:
            raise RuntimeError("ten neurons")
        if "draws" in self.kind:
            y = y + torch.randn_like(h).sum()
        if "draws in Python" in self.kind:
            y = y + random.random()
        if "target" in self.kind:
            assert target is not None, "training needs a target"
        if "samples" in self.kind:
            return y, torch.randint(100, (len(x), h.shape[1]))[:, :3]
        return self.last(y) if "last" in self.kind else y


def dead_in(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, ...], demp.NeuronGraph]:
    torch.manual_seed(1)
    model, inputs = nets.settle(Net(kind, dtype)).to(dtype), (torch.randn(9, 6, dtype=dtype),)
    inputs = (inputs[0].round(),) if "whole" in kind else inputs
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"relu": [2, 5]})
    return model, inputs, graph


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "why"), [("counts", "outputs changed by"), ("fails", "does not run .*ten neurons")])
def test_a_training_forward_that_takes_it_otherwise_is_rolled_back(kind, why, dtype):
    model, inputs, graph = dead_in(kind, dtype)
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match=f"rolled back: in training mode .*{why}"):
        demp.cut(model, {"relu": [2, 5]}, example_inputs=inputs, graph=graph)
    assert comparing.same_state(before, model) and model.fc.out_features == 12


@pytest.mark.parametrize(
    "kind",
    ["", "counts, draws", "counts, draws in Python", "counts, target", "last", "chaos", "chaos, whole", "samples"],
)
def test_others_are_cut_and_nothing_is_left_of_the_proof(kind):
    model, inputs, graph = dead_in(kind)
    model.train()
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    buffers = [(b, b.clone()) for b in (model.seen, model.last.running_mean, model.last.num_batches_tracked)]
    states = torch.get_rng_state(), random.getstate()
    assert demp.cut(model, {"relu": [2, 5]}, example_inputs=inputs, graph=graph).removed == 2
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert [module.training for module in model.modules()] == modes and model.calls == 0
    now = (model.seen, model.last.running_mean, model.last.num_batches_tracked)
    assert all(a is b and torch.equal(a, before) for (a, before), b in zip(buffers, now, strict=True))


def test_neurons_that_only_live_in_training_may_go():
    model, inputs, graph = dead_in("last")
    with torch.no_grad():
        model.norm.weight[7], model.norm.bias[7], model.norm.running_mean[7] = 1.0, 0.0, 1e3
    assert demp.cut(model, {"relu": [2, 5, 7]}, example_inputs=inputs, graph=graph).removed == 3


def test_half_precision_and_no_verification_have_no_such_proof(monkeypatch):
    runs = []
    whole = training_proof.run
    monkeypatch.setattr(training_proof, "run", lambda *args: (runs.append(1), whole(*args))[1])
    model, inputs, graph = dead_in("counts")
    assert demp.cut(model, {"relu": [2, 5]}, example_inputs=inputs, graph=graph, verify=False).removed == 2
    assert runs == []
    model, inputs, graph = dead_in("counts", torch.bfloat16)
    assert demp.cut(model, {"relu": [2, 5]}, example_inputs=inputs, graph=graph).removed == 2
    model, inputs, graph = dead_in("")
    runs.clear()
    demp.cut(model, {"relu": [2, 5]}, example_inputs=inputs, graph=graph)
    assert len(runs) == 2  # a third one where they differ


def test_whole_numbers_among_the_inputs_stay_what_they_are():
    """They may be ids, and a forward may compare them."""
    x = torch.tensor([3.0, 0.5, -2.0, 0.0, torch.inf])
    assert (training_proof.nudged(x) != x).tolist() == [False, True, False, False, False]
    assert torch.equal(training_proof.nudged(torch.tensor([1, 2])), torch.tensor([1, 2]))
