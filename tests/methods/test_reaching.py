"""Methods with a target land on budgets, too: by the same scores, as many neurons as it takes."""

import pytest
import torch

import demp
from contract import network, parts
from demp.errors import UsageError
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
