"""Methods with a target land on budgets, too: by the same scores, as many neurons as it takes."""

import pytest
import torch

import demp
from contract import network, parts
from demp.errors import UsageError
from demp.methods.reaching import neuron_sparsity_of
from runs import IMAGE, ResidualNet, build, train
from thinning import covering

WITH_TARGET = [
    "snap",
    "early-snap",
    "early-crop-s",
    "cropit-s",
    "network-slimming",
    "apoz",
    "greg-1",
    "greg-2",
    "random",
]


def test_these_are_all_that_take_a_budget():
    takes = {name for name in demp.methods.names() if demp.methods.find(name).takes_budget}
    assert takes == {*WITH_TARGET, "demp", "narrow"}


@pytest.mark.parametrize(("name", "budget"), covering(WITH_TARGET, ("flops=0.5", "parameters=0.4,neurons=0.7")))
def test_it_lands(name, budget):
    model = build(ResidualNet, stream=16, inner=24)
    model, optimizer, pruner = parts(name, model, torch.optim.SGD, budget=budget)
    train(model, optimizer, IMAGE, range(24))
    pruner.finish()
    meter = pruner._view.meter
    goals = meter.goals(pruner.config.budget)
    assert not meter.lack(goals, pruner.state.removed)
    fullest = max(meter.spent(key, pruner.state.removed) / goal for key, goal in goals.items())
    assert fullest > 1 - max(
        float(meter.savings(key, pruner.state.removed).max()) / goal for key, goal in goals.items()
    )


@pytest.mark.parametrize("ranking", ["global", "layer"])
def test_a_budget_of_neurons_is_the_target_by_another_name(ranking):
    """Eight of sixteen: the same neurons, whichever way it is said."""
    gone = []
    for aim in ({"target_neuron_sparsity": 0.25}, {"budget": demp.Budget(neurons=0.75)}):
        _, _, pruner = parts("random", network(), ranking=ranking, **aim)
        gone.append(pruner.state.removed)
    if ranking == "global":
        assert torch.equal(*gone)
    else:
        assert pruner.graph.at(gone[0]).neurons == pruner.graph.at(gone[1]).neurons


@pytest.mark.parametrize("name", ["snap", "network-slimming", "apoz", "greg-1", "random", "narrow"])
def test_two_aims_are_refused(name):
    with pytest.raises(UsageError, match=r"exclude each other; give budget=demp\.Budget\(neurons=0\.3\) alone"):
        demp.methods.config_class(name)(budget="flops=0.4", target_neuron_sparsity=0.7)


def test_apoz_by_its_rule_has_no_budget():
    with pytest.raises(UsageError, match="a budget needs rule='target'"):
        demp.methods.config_class("apoz")(budget="flops=0.4", rule="deviation")


def test_a_budget_stands_for_the_share_that_every_layer_must_lose():
    """One hidden layer: FLOPs go with its width, and 0.25 of them are a quarter of the neurons."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    pruner = demp.methods.create(
        "random", model, torch.optim.SGD(model.parameters(), 0.1), example_inputs=(torch.randn(2, 4),), total_steps=9
    )
    rho = neuron_sparsity_of(pruner._view, pruner.config, demp.Budget(flops=0.25))
    assert rho == pytest.approx(0.75, abs=1 / 32)


@pytest.mark.parametrize("name", ["snap", "cropit-s", "early-snap", "early-crop-s"])
def test_rounds_and_moment_follow_from_the_budget(name):
    """A small budget is a high neuron sparsity: several rounds, and a moment with the bound that it has there."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    options = {"prune_by": 1.0, "epoch_steps": 1} if name.startswith("early") else {}
    pruner = demp.methods.create(
        name, model, torch.optim.SGD(model.parameters(), 0.1), example_inputs=(x,), total_steps=9, budget="flops=0.1",
        batches=[(x, y)], loss_fn=torch.nn.functional.cross_entropy, **options,
    )  # fmt: skip
    method = pruner._run.method
    for _ in range(9):
        pruner.optimizers[0].zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        pruner.optimizers[0].step()
    pruner.finish()
    assert method.rho == pytest.approx(0.9, abs=1 / 32) and len(method.targets) == method._round == 7
    notes = [note for report in pruner.history for note in report.notes]
    assert any(note.startswith("round 7 of 7, to 1 of the way to the budget") for note in notes)
    if name.startswith("early"):
        assert method._trigger.bound == 1 - method.rho
    assert pruner.state.neurons == 3
