"""What the optimizer would not move, demp does not move, at every step anew; signs and final checks are right."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.regularization.penalties import Penalty
from demp.regularization.targets import Penalised
from demp.surgery import record_of
from runs import VECTOR, Mlp, batch_at, build, examples, loss_of, same, train

RATE, STEPS = 0.05, 12


class Normed(nn.Module):
    """Two hidden layers with norms, and a factor on the outputs."""

    def __init__(self):
        super().__init__()
        self.fc1, self.norm1, self.act1 = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU()
        self.fc2, self.norm2, self.act2 = nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU()
        self.head, self.factor = nn.Linear(10, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        x = self.act1(self.norm1(self.fc1(x)))
        return self.head(self.act2(self.norm2(self.fc2(x)))) * self.factor


def pruner_of(model, optimizer, **options):
    settings = {
        "total_steps": 60,
        "schedule": "constant",
        "peak_strength": 0.3,
        "peak_noise_std": 0.0,
        "dynamic": False,
    }
    batches = [examples(VECTOR, seed=1)]
    return demp.DemP(model, optimizer, example_inputs=(examples(VECTOR),), batches=batches, **{**settings, **options})


def climb(model, optimizer, steps):
    """A plain loop that maximises minus the loss."""
    for step in steps:
        optimizer.zero_grad()
        (-loss_of(model, step, VECTOR)).backward()
        optimizer.step()


# The sign of the penalty ------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["scales", "parameters"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
def test_climbing_minus_the_loss_is_descending_the_loss(on, kind):
    models = []
    for climbs in (False, True):
        model = build(Normed)
        optimizer = kind(model.parameters(), lr=RATE, maximize=climbs)
        pruner_of(model, optimizer, penalty_on=on)
        (climb if climbs else lambda m, o, s: train(m, o, VECTOR, s))(model, optimizer, range(STEPS))
        models.append(model)
    plain = build(Normed)
    train(plain, kind(plain.parameters(), lr=RATE), VECTOR, range(STEPS))
    assert same(*models) and not same(models[0], plain)


@pytest.mark.parametrize("penalty", [Penalty("l2", 0.5, "producers"), Penalty("group-lasso", 0.5, "channels")])
def test_slices_of_rising_parameters_turn_their_sign(penalty):
    model = build(Normed)
    graph = demp.trace(model, (examples(VECTOR),))
    slopes = {}
    for rising in ((), {id(model.fc1.weight)}):
        model.zero_grad()
        Penalised(model, graph, penalty.on).add_gradient(penalty, graph.dense, None, rising=rising)
        slopes[bool(rising)] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert slopes[False].keys() == slopes[True].keys() >= {"fc1.weight", "fc2.weight"}
    for name, slope in slopes[False].items():
        assert slope.any() and torch.equal(slopes[True][name], -slope if name == "fc1.weight" else slope)


def test_the_sign_is_each_groups_own():
    """The parameters of one group climb, those of the other descend: each is drawn towards zero."""
    model = build(Normed)
    groups = [
        {"params": model.norm1.parameters(), "maximize": True},
        {"params": [p for name, p in model.named_parameters() if not name.startswith("norm1")]},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    pruner = pruner_of(model, optimizer)
    loss_of(model, 0, VECTOR).backward()
    data = {name: p.grad.clone() for name, p in model.named_parameters()}
    pruner.before_step()
    for name, sign in (("norm1.weight", -0.3), ("norm2.weight", 0.3)):
        scale = model.get_parameter(name)
        assert torch.equal(scale.grad, data[name] + sign * scale.detach().sign())


# What is not moved ------------------------------------------------------------------------------------


def changed(model, optimizer, steps) -> set[str]:
    """Names of the parameters that a plain loop moves."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, VECTOR, steps)
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("mask", ["neuron-gradient", "weight-gradient", "last-check", "none"])
def test_a_layer_that_is_frozen_later_is_still(mask):
    model = build(Normed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    noisy = {"live_mask": mask} if mask != "none" else {"noise_on": "all"}
    pruner_of(model, optimizer, peak_noise_std=0.01, **noisy)
    everything = {name for name, _ in model.named_parameters()}
    norms = {"fc1.bias", "fc2.bias"} if mask == "weight-gradient" else set()  # behind a norm they get no gradient
    assert everything - norms <= changed(model, optimizer, range(2))
    for module in (model.head, model.norm1):
        module.requires_grad_(False)
    still = {"head.weight", "head.bias", "norm1.weight", "norm1.bias"}
    assert not still & changed(model, optimizer, range(2, 4))
    for module in (model.head, model.norm1):
        module.requires_grad_(True)
    assert everything - norms <= changed(model, optimizer, range(4, 6))


def test_noise_on_a_layer_whose_shift_is_frozen_follows_the_weight():
    """The shift has no gradient to tell who lives; the weight has."""
    model = build(Normed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    pruner_of(model, optimizer, peak_noise_std=0.01)
    model.norm1.bias.requires_grad_(False)
    assert "fc1.weight" in changed(model, optimizer, range(1)) and model.norm1.bias.grad is None


def test_a_parameter_in_no_optimizer_is_still():
    model = build(Normed)
    held = [p for name, p in model.named_parameters() if name != "factor"]
    optimizer = torch.optim.AdamW(held, lr=RATE)
    pruner_of(model, optimizer, peak_noise_std=0.01, penalty_on="parameters")
    assert "factor" not in changed(model, optimizer, range(3)) and "head.weight" in changed(
        model, optimizer, range(3, 4)
    )


def test_a_group_with_rate_zero_is_still_until_it_has_one():
    model = build(Normed)
    rest = [p for name, p in model.named_parameters() if not name.startswith("head")]
    optimizer = torch.optim.SGD([{"params": model.head.parameters(), "lr": 0.0}, {"params": rest}], lr=RATE)
    pruner_of(model, optimizer, peak_noise_std=0.01)
    assert not {"head.weight", "head.bias"} & changed(model, optimizer, range(3))
    optimizer.param_groups[0]["lr"] = 1e-300
    assert {"head.weight", "head.bias"} <= changed(model, optimizer, range(3, 4))


def test_a_step_without_gradients_moves_nothing():
    model = build(Normed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    pruner = pruner_of(model, optimizer, peak_noise_std=0.01)
    before = copy.deepcopy(model)
    optimizer.zero_grad()
    optimizer.step()
    assert same(model, before) and pruner.step == 1 and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("frozen", [("norm1",), ("norm1", "norm2")])
def test_scales_that_are_unfrozen_later_are_penalised_then(frozen, caplog):
    model = build(Normed)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    pruner = pruner_of(model, optimizer)
    assert ("of Normed are frozen: the penalty acts on the weights" in caplog.text) == (len(frozen) == 2)

    def pulled() -> set[str]:
        optimizer.zero_grad()
        loss_of(model, 0, VECTOR).backward()
        data = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        pruner.before_step()
        return {
            name for name, p in model.named_parameters() if p.grad is not None and not torch.equal(p.grad, data[name])
        }

    assert pulled() == ({"norm2.weight"} if len(frozen) == 1 else {"fc1.weight", "fc2.weight"})
    model.requires_grad_(True)
    assert pulled() == {"norm1.weight", "norm2.weight"}


# One pruner -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attach", [True, False])
def test_a_second_pruner_is_refused_and_names_the_first(attach):
    model = build(Normed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    first = pruner_of(model, optimizer, attach=attach)
    if attach:
        train(model, optimizer, VECTOR, range(3))
    message = f"this Normed is pruned already, by demp at step {3 if attach else 0} of 60; call finish"
    for other in (model, nn.Sequential(model)):
        with pytest.raises(UsageError, match=message):
            pruner_of(other, optimizer)
    first.detach()
    second = pruner_of(model, optimizer)
    second.finish()
    pruner_of(model, torch.optim.SGD(model.parameters(), lr=RATE))


def test_one_that_is_garbage_does_not_count():
    model = build(Normed)
    gc.disable()
    try:
        pruner_of(model, torch.optim.SGD(model.parameters(), lr=RATE))
        pruner_of(model, torch.optim.SGD(model.parameters(), lr=RATE))
    finally:
        gc.enable()


def test_one_of_another_model_and_one_that_was_refused_do_not_count():
    model, other = build(Normed), build(Normed)
    first = pruner_of(other, torch.optim.SGD(other.parameters(), lr=RATE))
    with pytest.raises(UsageError) as kept:
        pruner_of(model, torch.optim.SGD(build(Normed).parameters(), lr=RATE))
    assert "holds none" in str(kept.value) and first.step == 0
    pruner_of(model, torch.optim.SGD(model.parameters(), lr=RATE))


# The final check --------------------------------------------------------------------------------------


def masked(resume=False, period=5):
    torch.manual_seed(9 if resume else 0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    options = {"weight_sparsity": 0.97, "peak_strength": 0.002, "peak_noise_std": 0.0, "period": period}
    about = {"example_inputs": (examples(VECTOR),), "total_steps": 20, "batches": [examples(VECTOR, seed=1)]}
    return model, optimizer, demp.methods.create("demp+rigl", model, optimizer, **about, **options, resume=resume)


@pytest.mark.parametrize("period", [5, 7])
@pytest.mark.parametrize("at", [20, 18, 15])
def test_a_resumed_run_ends_with_the_same_network(period, at):
    """A check on the last step is the final one: emptied neurons go, whether or not the run was resumed there."""
    model, optimizer, pruner = masked(period=period)
    train(model, optimizer, VECTOR, range(at))
    state = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, VECTOR, range(at, 20))
    checks = len(pruner.history)
    report = pruner.finish()
    assert (len(pruner.history) == checks) == (period == 5) and report is pruner.finish()
    again, its_optimizer, resumed = masked(resume=True, period=period)
    for part, saved in zip((resumed, again, its_optimizer), state, strict=True):
        part.load_state_dict(saved)
    train(again, its_optimizer, VECTOR, range(at, 20))
    found = resumed.finish()
    assert (again[0].out_features, again[2].out_features) == (model[0].out_features, model[2].out_features)
    assert same(model, again) and model[0].out_features < 40 and found.neurons_after == report.neurons_after


def test_a_check_in_the_same_step_is_not_yet_the_final_one():
    """The run is ended early, right after an ordinary check."""
    model, optimizer, pruner = masked()
    train(model, optimizer, VECTOR, range(15))
    assert pruner.history[-1].step == 15
    before = model[0].out_features
    report = pruner.finish()
    assert len([r for r in pruner.history if r.step == 15]) == 2 and report.step == 15
    assert model[0].out_features < before


def test_a_finished_pruner_that_was_saved_makes_no_second_final_check():
    model, optimizer, pruner = masked()
    train(model, optimizer, VECTOR, range(20))
    pruner.finish()
    again, its_optimizer, resumed = masked(resume=True)
    for part, saved in ((resumed, pruner), (again, model), (its_optimizer, optimizer)):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    report = resumed.finish()
    assert same(model, again) and report.removed == 0 and report.notes == ("made before the restart",)


# The record after a resume ----------------------------------------------------------------------------


def test_the_record_remembers_the_inputs_of_its_own_cuts():
    def make(fresh):
        model = build(Mlp, seed=0 if fresh else 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        one = (examples(VECTOR, n=1),)
        options = {"total_steps": 20, "period": 5, "peak_strength": 3.0, "peak_noise_std": 0.0, "resume": not fresh}
        return model, optimizer, demp.DemP(model, optimizer, example_inputs=one, batches=[examples(VECTOR)], **options)

    model, optimizer, pruner = make(True)
    train(model, optimizer, VECTOR, range(12))
    assert record_of(model).inputs["args"][0]["shape"] == [8, 6]
    again, its_optimizer, resumed = make(False)
    for part, saved in ((resumed, pruner), (again, model), (its_optimizer, optimizer)):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert record_of(again).inputs == record_of(model).inputs
    assert F.cross_entropy(again(batch_at(0, VECTOR)[0]), batch_at(0, VECTOR)[1]).isfinite()
    old = {k: v for k, v in pruner.state_dict().items() if k not in ("inputs", "final")}  # as 0.1.0 saved it
    third, _, its_pruner = make(False)
    its_pruner.load_state_dict(old)
    assert record_of(third).inputs["args"][0]["shape"] == [1, 6]
