"""State that is not shaped like a parameter, and optimizers whose steps see shapes."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from twins import DEAD, batch, dying, remaining, stays, train

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


# Adafactor: factors, and steps that see the size of the whole tensor ------------------------------------


def fed(optimizer: optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[torch.Tensor]]) -> None:
    """Steps on given gradients."""
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    optimizer.zero_grad()


def second_moment(state: dict, eps: float = 0.0) -> torch.Tensor:
    """What Adafactor divides by."""
    if "variance" in state:
        return state["variance"]
    return state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True).clamp(min=eps)


ADAFACTOR = {
    "linear": (lambda: nets.mlp(5, 8, 6, 3), {"1": [0, 3, 4], "3": [5]}, (4, 5)),
    "convolution": (lambda: nets.plain(1, (6, 5), end="mean")[0], {"2": [0, 4], "6": [1]}, (3, 2, 6)),
}


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("kind", ADAFACTOR)
@pytest.mark.parametrize("dead_since", ["the start", "now"])
def test_adafactor_keeps_its_second_moments(kind, dead_since, foreach):
    """Equal to those of the dense tensor; where the dead never had a gradient, to those of a network born narrow."""
    build, dead, shape = ADAFACTOR[kind]
    model, inputs = build().double(), (torch.randn(shape, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, dead)
    optimizer = optim.Adafactor(model.parameters(), foreach=foreach)
    gone = killing.classes_of(graph, dead)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(5)]
    if dead_since == "the start":
        owners = {(slot.tensor, slot.axis): gone[slot.classes] for slot in graph.slots}
        for step in gradients:
            for (name, _), gradient in zip(model.named_parameters(), step, strict=True):
                for (owner, axis), dying in owners.items():
                    if owner == name:
                        gradient.index_fill_(axis, dying.nonzero().flatten(), 0.0)
    fed(optimizer, list(model.parameters()), gradients)
    killing.kill(model, graph, dead)
    moments = {name: second_moment(optimizer.state[p]) for name, p in model.named_parameters()}
    demp.cut(model, dead, example_inputs=inputs, optimizer=optimizer)

    kept = demp.surgery.record_of(model).kept
    born = [nn.Parameter(torch.zeros_like(p)) for p in model.parameters()]
    narrow = optim.Adafactor(born, foreach=foreach)
    names = [name for name, _ in model.named_parameters()]
    small = [[stays(name, g, kept) for name, g in zip(names, step, strict=True)] for step in gradients]
    fed(narrow, born, small)
    assert any(p.shape != m.shape for p, m in zip(model.parameters(), moments.values(), strict=True))
    for (name, parameter), other in zip(model.named_parameters(), born, strict=True):
        found = optimizer.state[parameter]
        assert torch.allclose(second_moment(found), stays(name, moments[name], kept), rtol=1e-12, atol=0)
        if dead_since == "the start":
            assert found.keys() == narrow.state[other].keys()
            assert all(torch.allclose(found[key], narrow.state[other][key], rtol=1e-12) for key in found)


def test_adafactor_goes_on_with_its_defaults():
    """Its steps see the norm and the size of the whole tensor, so that a dense twin steps differently; no error."""
    model = dying()
    optimizer = optim.Adafactor(model.parameters())
    train(model, optimizer, range(5))
    demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer)
    state = optimizer.state[model.fc.weight]
    assert (state["row_var"].shape, state["col_var"].shape) == ((3, 1), (1, 12))
    losses = train(model, optimizer, range(5, 20))
    assert all(math.isfinite(loss) for loss in losses)


# LBFGS: one flat history ----------------------------------------------------------------------------------


def lbfgs_steps(model: nn.Module, optimizer: optim.Optimizer, count: int) -> list[float]:
    images, labels = batch(0, next(model.parameters()).dtype)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(count)]
    optimizer.zero_grad()
    return losses


def lbfgs_of(model: nn.Module, search: str | None = None) -> optim.Optimizer:
    """LBFGS in whose history a foreign parameter stands too."""
    foreign = nn.Parameter(torch.ones(3, dtype=torch.float64))
    return optim.LBFGS([foreign, *model.parameters()], lr=0.1, max_iter=3, history_size=2, line_search_fn=search)


def begun(search: str | None = None, frozen: bool = False) -> tuple[nn.Module, optim.Optimizer]:
    """Some steps with the dead dead since the start."""
    model = dying()
    model.conv.weight.requires_grad_(not frozen)
    optimizer = lbfgs_of(model, search)
    lbfgs_steps(model, optimizer, 4)
    return model, optimizer


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_the_history_of_lbfgs_is_sliced_where_that_is_exact(search, frozen):
    model, optimizer = begun(search, frozen)
    dense = copy.deepcopy(model)
    other = lbfgs_of(dense, search)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    report = demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert report.removed == 7 and report.notes == ()
    size = 3 + sum(p.numel() for p in model.parameters())
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    vectors = [state["d"], state["prev_flat_grad"], *state["old_dirs"], *state["old_stps"]]
    assert len(vectors) == 6 and {len(vector) for vector in vectors} == {size}
    calls = 1 if search else 6  # of three iterations; a line search that finds no descent magnifies rounding
    wanted, found = lbfgs_steps(dense, other, calls), lbfgs_steps(model, optimizer, calls)
    assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) < 1e-10
    assert remaining(dense, model) < 1e-10


def test_the_history_of_lbfgs_is_forgotten_where_it_holds_steps_of_the_removed():
    model, optimizer = begun()
    killing.kill(model, demp.trace(model, batch(0)[:1]), {"acts.2": [1]})
    report = demp.cut(model, {"acts.2": [1]}, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert report.notes == ("LBFGS began a new history: the old one held steps of the removed neurons",)
    assert optimizer.state[optimizer.param_groups[0]["params"][0]] == {}
    twin = copy.deepcopy(model)
    assert lbfgs_steps(model, optimizer, 3) == lbfgs_steps(twin, lbfgs_of(twin), 3)


@pytest.mark.parametrize("dead", [DEAD, {**DEAD, "acts.2": [1]}], ids=["sliced", "forgotten"])
def test_a_cut_that_fails_leaves_lbfgs_as_it_was(dead):
    model, optimizer = begun()
    model.head.register_forward_pre_hook(
        lambda m, args: (args[0] + torch.tensor(m.weight.shape[1]),)
    )  # outputs differ: rolled back
    before, state = comparing.state(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(demp.CutError, match="rolled back"):
        demp.cut(model, dead, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert comparing.same_state(before, model) and comparing.same_tree(state, optimizer.state_dict())
    assert optimizer._numel_cache == 3 + sum(p.numel() for p in model.parameters())


def test_a_flat_history_that_is_still_empty_is_accepted():
    model = dying()
    lbfgs = optim.LBFGS(model.parameters(), max_iter=2)
    assert demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=lbfgs).notes == ()
    first, second = lbfgs_steps(model, lbfgs, 2)
    assert first > second


# Muon: steps that see the shape ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon(adjust, dtype):
    """Momentum follows exactly. The step is orthogonalised in bfloat16, whose sums round differently in other shapes
    (2 ** -8 of the largest entry, each), and then multiplied by a factor that Muon takes from the shape: another
    factor would be 7 % off.
    """
    model, x = nets.mlp(12, 40, 24, 10, bias=False).to(dtype), torch.randn(64, 12, dtype=dtype)
    dead = {"1": [0, 3, 5, 17, 30], "3": [2, 4, 20]}
    killing.kill(model, demp.trace(model, (x,)), dead)

    def steps(net: nn.Module, optimizer: optim.Optimizer, count: int) -> None:
        for _ in range(count):
            F.cross_entropy(net(x), torch.arange(64) % 10).backward()
            optimizer.step()
            optimizer.zero_grad()

    make = partial(optim.Muon, lr=0.02, weight_decay=0.0, adjust_lr_fn=adjust)
    optimizer = make(model.parameters())
    steps(model, optimizer, 3)
    dense = copy.deepcopy(model)
    other = make(dense.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    demp.cut(model, dead, example_inputs=(x,), optimizer=optimizer)
    kept = demp.surgery.record_of(model).kept
    before = [(stays(n, d.detach(), kept).clone(), p.detach().clone())
              for (n, p), d in zip(model.named_parameters(), dense.parameters(), strict=True)]  # fmt: skip
    steps(dense, other, 1)
    steps(model, optimizer, 1)
    for (name, small), large, (was_large, was_small) in zip(
        model.named_parameters(), dense.parameters(), before, strict=True
    ):
        momenta = optimizer.state[small]["momentum_buffer"], stays(name, other.state[large]["momentum_buffer"], kept)
        assert torch.allclose(*momenta, rtol=0, atol=TOLERANCE[dtype])
        ratio = factor(adjust, small.shape) / factor(adjust, large.shape)
        moved, wanted = small.detach() - was_small, (stays(name, large.detach(), kept) - was_large) * ratio
        assert float((moved - wanted).abs().max()) <= 2**-5 * float(wanted.abs().max())
    assert factor(adjust, model[0].weight.shape) != factor(adjust, dense[0].weight.shape)


def factor(adjust: str, shape: torch.Size) -> float:
    """Muon's factor on the learning rate."""
    return math.sqrt(max(1, shape[0] / shape[1])) if adjust == "original" else 0.2 * math.sqrt(max(shape))


# SparseAdam: gradients that are not dense -----------------------------------------------------------------


def test_sparse_adam():
    """The table's columns are the neurons' gates; its gradients name the rows that were looked up."""
    parts = {"fc": nn.Linear(4, 6), "table": nn.Embedding(7, 6, sparse=True), "head": nn.Linear(6, 3)}
    model = nets.Forward(lambda s, x, t: s.head(F.relu(s.fc(x)) * s.table(t)), **parts).double()
    inputs, dead = (torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 2, 2, 5, 6])), {"relu": [1, 4]}
    killing.kill(model, demp.trace(model, inputs), dead)

    def make(net: nn.Module) -> list[optim.Optimizer]:
        return [optim.SparseAdam([net.table.weight]), optim.Adam([*net.fc.parameters(), *net.head.parameters()])]

    def steps(net: nn.Module, optimizers: list[optim.Optimizer], set_to_none: bool) -> None:
        for _ in range(3):
            net(*inputs).square().sum().backward()
            for one in optimizers:
                one.step()
                one.zero_grad(set_to_none=set_to_none)

    optimizers = make(model)
    steps(model, optimizers, True)
    dense = copy.deepcopy(model)
    others = make(dense)
    for one, other in zip(optimizers, others, strict=True):
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    model(*inputs).sum().backward()
    with pytest.raises(demp.CutError, match="holds a gradient"):
        demp.cut(model, dead, example_inputs=inputs, optimizer=optimizers)
    model.zero_grad(set_to_none=False)  # leaves sparse gradients without entries
    demp.cut(model, dead, example_inputs=inputs, optimizer=optimizers)
    assert model.table.weight.shape == optimizers[0].state[model.table.weight]["exp_avg"].shape == (7, 4)
    steps(dense, others, True)
    steps(model, optimizers, True)
    assert remaining(dense, model) < 1e-10


# Optimizers of others -------------------------------------------------------------------------------------


class Strange(optim.SGD):
    """Keeps what it is told to keep of each parameter."""

    def __init__(self, parameters, remember) -> None:
        super().__init__(parameters, lr=0.1)
        self.remember = remember

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].update(self.remember(parameter.detach()))
        return loss


def test_trees_of_parameter_shaped_tensors_follow():
    def remember(p: torch.Tensor) -> dict:
        return {"moments": [p.clone(), {"slow": (p * 2, 3)}], "count": torch.tensor(5), "name": "x", "none": None}

    model = dying()
    optimizer = Strange(model.parameters(), remember)
    train(model, optimizer, range(1))
    demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer)
    for parameter in model.parameters():
        assert comparing.same_tree(remember(parameter.detach()), dict(optimizer.state[parameter]))


@pytest.mark.parametrize(
    ("remember", "message"),
    [
        (lambda p: {"rows": p.new_zeros(len(p), 2)}, r"Strange keeps state 'rows' \(\(\d, 2\)\) for \w+.weight"),
        (lambda p: {"codes": object()}, r"Strange keeps state 'codes' \(object\) for conv.weight \(5, 2, 3, 3\)"),
        (lambda p: {"factor": [p.flatten(1) @ p.flatten(1).T if p.dim() > 1 else p]}, "Strange keeps state 'factor'"),
    ],
)
def test_unknown_state_is_refused_before_anything_is_touched(remember, message):
    model = dying()
    optimizer = Strange(model.parameters(), remember)
    train(model, optimizer, range(1))
    unchanged(model, optimizer, message)


def test_a_square_preconditioner_is_not_taken_for_the_parameters_shape():
    model = nets.mlp(4, 6, 6, 3, bias=False).double()
    inputs = (torch.randn(5, 4, dtype=torch.float64),)
    killing.kill(model, demp.trace(model, inputs), {"3": [0]})
    optimizer = Strange(model.parameters(), lambda p: {"factor": p @ p.T})
    model(*inputs).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(demp.CutError, match=r"Strange keeps state 'factor' \(\(\d, \d\)\) for 2.weight \(6, 6\)"):
        demp.cut(model, {"3": [0]}, example_inputs=inputs, optimizer=optimizer)


def unchanged(model: nn.Module, optimizer: optim.Optimizer, message: str) -> None:
    before, state = comparing.state(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(demp.CutError, match=message):
        demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert comparing.same_state(before, model)
    assert comparing.same_tree(without_objects(state), without_objects(optimizer.state_dict()))
    assert demp.surgery.record_of(model) is None


def without_objects(state: dict) -> list[list]:
    """An optimizer's state without what cannot be compared."""
    return [[v for v in one.values() if type(v) is not object] for one in state["state"].values()]
