"""What a budget may say, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import demp
from demp.budgets import Budget, as_budget
from demp.errors import UsageError
from demp.methods.demp_config import DemPConfig
from runs import IMAGE, VECTOR, Mlp, PlainNet, build, examples, sgd


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("flops=0.4", Budget(flops=0.4)),
        (" flops = 0.4 , parameters=1000 ", Budget(flops=0.4, parameters=1000)),
        ({"neurons": 0.5}, Budget(neurons=0.5)),
        ({"memory": 5e-1}, Budget(memory=0.5)),
        (Budget(latency=200), Budget(latency=200)),
        (None, None),
    ],
)
def test_every_way_to_write_one(value, expected):
    assert as_budget(value) == expected


@pytest.mark.parametrize("budget", [Budget(flops=0.4), Budget(parameters=1000, neurons=0.5, latency=0.9)])
def test_it_goes_through_files(budget):
    assert as_budget(budget.to_dict()) == budget
    assert eval(repr(budget)) == budget


def test_numbers_of_numpy_are_numbers():
    budget = Budget(flops=np.float64(0.25), parameters=np.int64(700))
    assert repr(budget) == "Budget(flops=0.25, parameters=700)"
    assert type(budget.flops) is float and type(budget.parameters) is int


@pytest.mark.parametrize(
    "value",
    [0.0, -0.1, 1.5, float("nan"), float("inf"), 0, -3, True, "0.4", None, [0.4]],
)
def test_no_limit(value):
    with pytest.raises(UsageError, match=r"flops|at least one"):
        Budget(flops=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("flops", "RESOURCE=NUMBER"),
        ("flops=much", "RESOURCE=NUMBER"),
        ("flop=0.4", "unknown resource 'flop'"),
        ("flops=0.4,neurons=0.5,flops=0.5", "gives flops twice"),
        (0.4, "budget is a float"),
        ("", "at least one of"),
        ({}, "at least one of"),
    ],
)
def test_refused_texts(value, message):
    with pytest.raises(UsageError, match=message):
        as_budget(value)


def attach(budget, kind=PlainNet, method="demp", **options):
    model = build(kind)
    shape = VECTOR if kind is Mlp else IMAGE
    return demp.methods.create(
        method, model, sgd(model), example_inputs=(examples(shape),), total_steps=40, budget=budget, **options
    )


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        ("flops=0.001", {}, r"the budget of 0\.001 of the dense flops cannot be reached: 0\.\d+ is left"),
        ("neurons=4", {"floor": 3}, "cannot be reached.* its floor of 3; .* above that, a lower floor, or"),
        ("neurons=4", {"multiple": 4}, "a multiple of 4 neurons or heads; .* a lower floor or multiple, or exclude"),
        ("flops=0.5", {"exclude": ("*",)}, "cannot be reached: 1 is left"),
        ("flops=0.5", {"total_steps": 2}, "a run of 2 steps is too short"),
        ("flops=0.5", {"target_neuron_sparsity": 0.3}, r"exclude each other; give budget=demp\.Budget\(neurons=0\.7\)"),
        ("flops=0.5", {"push_from": 0.6, "push_until": 0.5}, "push_from is 0.6 and push_until is 0.5"),
        ("flops=0.5", {"rounds": 0}, "rounds is 0"),
        ("flops=0.5", {"method": "prune-train"}, "prune-train has no target"),
        ("flops=0.5", {"method": "rigl"}, "rigl has no target"),
    ],
)
def test_refused_when_the_pruner_is_built(budget, options, message):
    options = dict(options)
    steps = options.pop("total_steps", 40)
    model = build(PlainNet)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = sgd(model)
    method = options.pop("method", "demp")
    with pytest.raises(UsageError, match=message):
        demp.methods.create(
            method, model, optimizer, example_inputs=(examples(IMAGE),), total_steps=steps, budget=budget, **options
        )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not optimizer._optimizer_step_post_hooks


def test_the_refusal_counts_what_the_graph_refused():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 12), nn.LayerNorm(16), nn.Linear(12, 16)
            self.c = nn.Linear(16, 3)

        def forward(self, x):
            return self.c(torch.relu(self.norm(torch.relu(self.b(torch.relu(self.a(x)))))))

    model = build(Normed)
    with pytest.raises(UsageError, match=r"\d+ neurons are refused by the graph"):
        demp.DemP(model, sgd(model), example_inputs=(examples(VECTOR),), total_steps=40, budget="parameters=0.1")


def test_config_and_pruner_take_the_same_budget():
    assert DemPConfig(budget={"flops": 0.4}).budget == Budget(flops=0.4)
    assert attach("flops=0.5").config.budget == Budget(flops=0.5)
