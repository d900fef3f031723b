"""The training forward is followed, too: what it returns, mixes or sums is seen, and a cut is right in training."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
import nets
import residuals
from demp.graph.joins import model_joins
from residuals import Block


class Varying(Block):
    """A residual block that does something else in training."""

    def __init__(self, kind: str, width: int = 8, inner: int = 5) -> None:
        super().__init__(width, inner)
        self.kind, self.drop = kind, nn.Dropout2d(0.3)
        self.child = nets.Forward(lambda s, y: y + torch.zeros_like(y) if s.training else y)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.act(self.branch(x) + x)
        match self.kind:
            case "a sum before":
                y = self.branch(x)
                y = y + 0.0 * torch.randn_like(y)
                return self.act(y + x)
            case "a sum in a child":
                return self.act(self.child(self.branch(x)) + x)
            case "skipped":
                return x
            case "computed again":
                return checkpoint(lambda t: self.act(self.branch(t) + t), x, use_reentrant=True)
            case "computed again without reentry":
                return checkpoint(lambda t: self.act(self.branch(t) + t), x, use_reentrant=False)
            case "the other way round":
                return self.act(x + self.branch(x))
            case "the same elsewhere":
                y = self.branch(x)
                return self.act(y + x)
            case "a sum after":
                y = self.act(self.branch(x) + x)
                return y + torch.zeros_like(y)
            case "dropout":
                return self.act(self.drop(self.branch(x)) + x)
            case "stochastic depth":
                kept = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1.0)
                return self.act(self.branch(x) * kept + x)
        raise AssertionError(self.kind)


BOUND = {
    "a sum before": "the training forward has another sum at its place, or none",
    "a sum in a child": "a module inside it sums in the training forward",
    "skipped": "the training forward has another sum at its place, or none",
    "computed again": "training computes it again outside of the module's forward",
    "computed again without reentry": "training computes it again outside of the module's forward",
    "the other way round": "the training forward has another sum at its place, or none",
}
FREE = ("the same elsewhere", "a sum after", "dropout", "stochastic depth")


def varying(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*stem, Varying(kind), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nets.settle(model), (torch.randn(4, 3, 6, 6, dtype=torch.float64),)


def require_same_training(model: nn.Module, twin: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Equal outputs and gradients in training mode, with the same random numbers where their number is the same."""
    found = []
    for each in (model.train(), twin.train()):
        torch.manual_seed(0)
        out = each(*inputs)
        out.square().sum().backward()
        found.append([out.detach(), each[6].bias.grad, each[6].weight.grad.square().sum()])
    assert comparing.gap(*found) < 1e-10


@pytest.mark.parametrize("kind", BOUND)
def test_another_sum_in_training_binds_both_sides(kind):
    model, inputs = varying(kind)
    graph = demp.trace(model, inputs)
    assert graph.joins == () and graph.layer("2").coupled == ("3.act#2",)
    (note,) = graph.notes
    assert note.startswith("3: its residual sum binds both sides, because ") and BOUND[kind] in note
    assert note in str(demp.inspect(model, inputs))
    dead = killing.some_dead(graph, 0.5, random.Random(1))
    killing.kill(model, graph, dead)
    twin = copy.deepcopy(model)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed > 4
    require_same_training(model, twin, inputs)


class Whole(nn.Module):
    """Checkpoints a whole block, whose forward the backward runs again."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = Varying("the same elsewhere"), reentrant

    def forward(self, x: Tensor) -> Tensor:
        again = self.training and x.requires_grad
        return checkpoint(self.block, x, use_reentrant=self.reentrant) if again else self.block(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_that_is_checkpointed_as_a_whole_may_add_two_widths(reentrant):
    model, inputs = varying("dropout")
    model[3] = Whole(reentrant)
    model = nets.settle(model)
    graph = demp.trace(model, inputs)
    assert len(graph.joins) == 1 and graph.notes == ()
    dead = {"2": [0, 1], "3.block.act": [2], "3.block.act#2": [3, 4]}
    killing.kill(model, graph, dead)
    twin = copy.deepcopy(model)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 5
    require_same_training(model, twin, inputs)


@pytest.mark.parametrize("kind", FREE)
def test_the_same_sum_in_training_may_add_two_widths(kind):
    model, inputs = varying(kind)
    graph = demp.trace(model, inputs)
    assert len(graph.joins) == 1 and graph.notes == () and graph.removable() == graph.dense.neurons
    dead = {"2": [0, 1], "3.act": [2], "3.act#2": [3, 4]}
    killing.kill(model, graph, dead)
    with torch.no_grad():  # in training the batch's own statistics would revive them
        for norm, gone in ((model[1], [0, 1]), (model[3].bn1, [2]), (model[3].bn2, [3, 4])):
            norm.weight[gone] = 0.0
    twin = copy.deepcopy(model)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 5 and model_joins(model)
    if kind != "dropout":  # which draws one number per channel
        require_same_training(model, twin, inputs)


@pytest.mark.parametrize("whole_blocks", [False, True])
def test_a_sum_that_only_training_has_binds_both_sides(whole_blocks):
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = torch.relu(s.a(x))
        if whole_blocks:
            h = torch.relu(s.d(h) + h)
        y = s.b(h)
        return s.c(torch.relu(y + 0.5 * h if s.training else y))

    sizes = {"a": (6, 8), "b": (8, 8), "c": (8, 3), "d": (8, 8)}
    model = nets.settle(nets.Forward(forward, **{name: nn.Linear(*size) for name, size in sizes.items()}))
    inputs = (torch.randn(5, 6, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    last = graph.layers[-1]
    assert len(graph.joins) == whole_blocks and last.coupled
    dead = {name: [1, 2] for name in (last.name, *last.coupled)}
    killing.kill(model, graph, dead)
    twin = copy.deepcopy(model)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 4
    torch.testing.assert_close(model.train()(*inputs), twin.train()(*inputs), rtol=1e-12, atol=1e-12)


def test_a_block_that_training_leaves_out():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 6, 3), Block(6, 4), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return self.head((x if self.training else self.block(x)).mean((2, 3)))

    graph = demp.trace(nets.settle(Net()), (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    assert graph.joins == () and "the training forward leaves the module out" in graph.notes[0]


# What only the training forward returns or mixes ---------------------------------------------------------


def features(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    def forward(s, x):
        h = torch.relu(s.a(x))
        out = s.b(h)
        match kind if s.training else "":
            case "returned":
                return out, h
            case "kept":
                s.seen = h
            case "mean":
                return out + h.mean(1, keepdim=True)
            case "deviation":
                return out + h.std(1, keepdim=True)
            case "norm":
                return out, F.normalize(h, dim=1).square().mean()
            case "layer norm":
                return s.b(F.layer_norm(h, h.shape[1:]))
            case "coupled":
                return s.b(h * torch.relu(s.c(x)))
            case "dropout":
                return s.b(F.dropout(h, 0.5))
            case "noise":
                return s.b(h + torch.randn(len(h), h.size(1), dtype=h.dtype))
            case "own noise":
                return s.b(h * (torch.rand_like(h) > 0.1))
            case "hard-coded":
                return s.b(h.view(size=(-1, 12)))
        return out

    parts = {"a": nn.Linear(6, 12), "b": nn.Linear(12, 3), "c": nn.Linear(6, 12)}
    return nets.settle(nets.Forward(forward, **parts)), (torch.randn(5, 6, dtype=torch.float64),)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("returned", "model output (in the training forward)"),
        ("kept", "kept on a module by the forward (in the training forward)"),
        ("mean", "mean over the neuron axis mixes neurons"),
        ("norm", "over the neuron axis mixes neurons"),
        ("deviation", "std over the neuron axis mixes neurons"),
        ("layer norm", "layer_norm over the neuron axis mixes neurons"),
        ("hard-coded", ""),
    ],
)
def test_what_only_training_does_with_neurons_keeps_them(kind, reason):
    model, inputs = features(kind)
    graph = demp.trace(model, inputs)
    assert graph.removable() == 0
    assert [refusal.neurons for refusal in graph.refused] == [12] and reason in graph.refused[0].reason


@pytest.mark.parametrize("kind", ["", "dropout", "noise", "own noise", "coupled"])
def test_what_training_does_to_each_neuron_alone_does_not(kind):
    model, inputs = features(kind)
    graph = demp.trace(model, inputs)
    assert graph.removable() == 12 and graph.refused == ()
    killing.kill(model, graph, {"relu": [1, 7]})
    before = comparing.outputs(model, inputs)
    demp.cut(model, {"relu": [1, 7]}, example_inputs=inputs, graph=graph)
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-12
    assert model.train()(*inputs).shape == (5, 3)
    assert model.c.out_features == (10 if kind == "coupled" else 12)


def test_a_training_forward_that_needs_more_is_not_followed():
    def forward(s, x, target=None):
        out = s.b(torch.relu(s.a(x)))
        return F.mse_loss(out, target) if s.training else out

    model = nets.settle(nets.Forward(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 3)))
    assert demp.trace(model, (torch.randn(2, 6, dtype=torch.float64),)).removable() == 5


def test_the_model_and_all_random_states_stay_as_they_are():
    import numpy as np

    def forward(s, x):
        if s.training:
            s.steps += 1
            x = x * random.random() * float(np.random.rand())
        return s.b(s.n(torch.relu(s.a(x + torch.rand_like(x)))))

    model = nets.settle(nets.Forward(forward, a=nn.Linear(6, 5), n=nn.BatchNorm1d(5), b=nn.Linear(5, 3)))
    model.steps, calls = 0, []
    model.a.register_full_backward_hook(lambda *_: calls.append("backward"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    demp.trace(model, (torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after and model.steps == 0 and calls == []
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(p.grad is None for p in model.parameters()) and not any(m.training for m in model.modules())


def test_blocks_that_may_be_left_out_by_python_s_random_keep_their_streams():
    model, inputs = residuals.network()
    assert demp.trace(model, inputs).joins
    model.forward = lambda x: [x := m(x) for m in model if not model.training or random.random() < 2][-1]
    graph = demp.trace(model, inputs)
    assert not graph.joins and "draws from Python's random, which may leave blocks out" in " ".join(graph.notes)


@pytest.mark.parametrize("draw", [random.random, lambda: float(torch.rand(()))], ids=["python", "torch"])
def test_what_training_draws_is_the_same_every_time(draw):
    """On every rank and after every restart: the numbering of what goes together rests on it."""

    def forward(s, x):
        h = torch.relu(s.a(x))
        return s.b(h) + (h.mean(1, keepdim=True) if s.training and draw() < 0.5 else 0)

    model = nets.settle(nets.Forward(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 3)))
    found = set()
    for seed in range(6):
        random.seed(seed)
        torch.manual_seed(seed)
        found.add(demp.trace(model, (torch.randn(2, 6, dtype=torch.float64),)).removable())
    assert len(found) == 1
