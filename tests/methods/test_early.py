"""EarlySNAP and EarlyCroP-S: the moment by both rules against literal loops, then SNAP's and CroPit-S's cut."""

import copy
import io
from dataclasses import asdict
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_reference import RULES, WIDTHS, Literal, flat, literal_rounds
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.methods.combination import combined
from demp.methods.early_crop_s import EarlyCropSConfig
from demp.methods.early_snap import EarlySnap
from demp.methods.rigl import RigL
from demp.methods.trigger import Trigger
from runs import IMAGE, PlainNet, ResidualNet, batch_at, build, loss_of, sgd, train
from thinning import covering, mostly_slow

STEPS, EPOCH = 48, 4
PRUNERS = {
    "early-snap": ("early-snap", {}, "sensitivity"),
    "early-crop-s": ("early-crop-s", {}, "weight-flow"),
    "early-crop-s gates only": ("early-crop-s", {"score": "gate-flow"}, "gate-flow"),
}


def scoring_batches(seed: int) -> Any:
    return [batch_at(500 + seed + i, IMAGE) for i in range(2)]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Adam whose rate falls, so that the weights come to rest."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)


def slower(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * 0.97**step


def attached(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    defaults = {
        "example_inputs": (batch_at(0, IMAGE)[0],), "batches": scoring_batches, "loss_fn": F.cross_entropy,
        "total_steps": STEPS, "epoch_steps": EPOCH, "target_neuron_sparsity": 0.8, "prune_by": 1.0,
    }  # fmt: skip
    return demp.methods.create(name, model, optimizer, **{**defaults, **options})


def kept(pruner: demp.Pruner) -> dict[str, list[int]]:
    return {layer.name: sorted(pruner.state.kept(layer.classes).tolist()) for layer in pruner.graph.layers}


# The moment ---------------------------------------------------------------------------------------------


def wandering(seed: int, epochs: int, pace: float) -> list[dict[str, Tensor]]:
    """Weights at epoch ends that move less and less, and sometimes not at all."""
    source = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(4, 3, generator=source), "b": torch.randn(5, generator=source, dtype=torch.float64)}
    found = [weights]
    for epoch in range(epochs):
        step = 2.0 * pace**epoch if torch.rand(1, generator=source) < 0.9 else 0.0
        weights = {n: w + step * torch.randn(w.shape, generator=source, dtype=w.dtype) for n, w in weights.items()}
        found.append(weights)
    return found


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(RULES)), st.floats(0.05, 0.97), st.floats(0.3, 1.0))
def test_the_trigger_fires_when_the_formula_does(seed: int, rule: str, rho: float, pace: float):
    epochs = wandering(seed, 12, pace)
    vectors = [torch.cat([w.double().flatten() for w in weights.values()]) for weights in epochs]
    trigger, fired = Trigger(rule, rho), None
    for epoch, weights in enumerate(epochs):
        if epoch == 0 and rule == "repository":
            continue
        if trigger.look(weights):
            fired = epoch
            break
        trigger, saved = Trigger(rule, rho), trigger.state_dict()
        trigger.load_state_dict(saved)
    assert fired == RULES[rule](vectors, rho)


def test_the_paper_rule_can_fire_after_one_epoch_and_the_repository_rule_after_three():
    w = [{"w": torch.full((4,), 1 + x)} for x in (0.0, 0.1, 0.6, 0.61)]
    paper, repository = Trigger("paper", 0.5), Trigger("repository", 0.5)
    assert [paper.look(x) for x in w[:2]] == [False, True]
    assert [repository.look(x) for x in w[1:]] == [False, False, True]


def test_at_a_high_target_the_repository_rule_never_fires_and_weights_that_rest_fire_neither():
    w = {"w": torch.ones(4)}
    repository = Trigger("repository", 0.9)
    assert not any(repository.look(x) for x in [w, {"w": torch.full((4,), 1.5)}, *[w] * 5])
    paper = Trigger("paper", 0.5)
    assert not any(paper.look(w) for _ in range(5))


# The whole run by the book ------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "name", "rule"), covering((PlainNet, ResidualNet), PRUNERS, RULES))
def test_a_run_is_the_one_of_the_book_step_by_step(name: str, rule: str, network: type[nn.Module]):
    method, options, kind = PRUNERS[name]
    model = build(network, seed=3, act=nn.GELU)
    rho = 0.8
    twin = Literal(model, WIDTHS[network])
    optimizer, twin_optimizer = optimizer_of(model), torch.optim.Adam(twin.weights, lr=0.1)
    pruner = attached(method, model, optimizer, trigger=rule, **options)
    epochs, fired = [flat(twin.model)], None
    for step in range(STEPS):
        slower(optimizer, step)
        slower(twin_optimizer, step)
        (loss,) = train(model, optimizer, IMAGE, range(step, step + 1))
        twin_optimizer.zero_grad()
        wanted = loss_of(twin.model, step, IMAGE)
        wanted.backward()
        twin_optimizer.step()
        if (step + 1) % EPOCH == 0 and fired is None:
            epochs.append(torch.cat([w.detach().flatten() for w in twin.weights]))
            if RULES[rule](epochs, rho) is not None:
                fired = step + 1
                twin.prune(kind, scoring_batches(fired), literal_rounds(rho))
        assert loss == pytest.approx(wanted.item(), abs=1e-8)
        assert kept(pruner) == twin.kept()
    assert fired is not None and 2 * EPOCH < fired < STEPS
    assert [report.step for report in pruner.history] == [fired] * 7
    assert pruner.state_dict()["method_state"]["fired"] == fired
    assert (
        pruner.history[0]
        .notes[0]
        .startswith(f"pruned at step {fired}, after {fired // EPOCH} epochs of {EPOCH} steps: weights moved")
    )


def test_looking_at_the_weights_is_no_check():
    model, plain = build(PlainNet), build(PlainNet)
    pruner = attached("early-snap", model, sgd(model), target_neuron_sparsity=0.9, trigger="repository")
    assert train(model, pruner.optimizers[0], IMAGE, range(28)) == train(plain, sgd(plain), IMAGE, range(28))
    assert pruner.state_dict()["method_state"]["trigger"]["moved"] > 0
    assert pruner.history == []


def test_the_cap_prunes_in_any_case():
    model = build(PlainNet)
    pruner = attached("early-snap", model, sgd(model), target_neuron_sparsity=0.9, trigger="repository", prune_by=0.35)
    train(model, pruner.optimizers[0], IMAGE, range(STEPS))
    assert {report.step for report in pruner.history} == {17}
    assert "the moment had not come by 0.35 of the run" in pruner.history[0].notes[0]
    assert not pruner.finish().happened


def test_a_run_that_ends_before_its_moment_is_pruned_at_its_end():
    model = build(PlainNet)
    pruner = attached("early-snap", model, sgd(model), target_neuron_sparsity=0.9, trigger="repository")
    train(model, pruner.optimizers[0], IMAGE, range(10))
    assert not pruner.history
    report = pruner.finish()
    assert {r.step for r in pruner.history} == {10}
    assert report.neurons_after == 3  # one of each layer: the target of 16 removed is out of reach
    assert pruner.history[0].notes[0].endswith("the run ended")


def test_a_moment_in_an_accumulation_waits_for_the_next_step():
    model = build(PlainNet)
    pruner = attached("early-snap", model, sgd(model), target_neuron_sparsity=0.9, trigger="repository", prune_by=0.1)
    train(model, pruner.optimizers[0], IMAGE, range(4))
    pending = loss_of(model, 4, IMAGE)
    step_with(model, pruner.optimizers[0], 4)
    assert not pruner.history
    assert pruner.state_dict()["postponed"]
    del pending
    step_with(model, pruner.optimizers[0], 5)
    assert {report.step for report in pruner.history} == {6}
    assert len(pruner.history) == 7


def step_with(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A step that touches no weight, so that a pending backward stays usable."""
    optimizer.zero_grad()
    loss_of(model, step, IMAGE).backward()
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()


class Eager(RigL):
    """A mask method that asks for a check after every step."""

    name: ClassVar[str] = "eager"

    def is_due(self, step: int) -> bool:
        return True


def test_in_a_combination_the_other_methods_checks_do_not_hurry_it():
    model = build(PlainNet)
    optimizer = sgd(model)
    method = combined(EarlySnap, Eager)
    config = method.Config(target_neuron_sparsity=0.5, trigger="repository", epoch_steps=EPOCH, prune_by=0.5)
    pruner = demp.Pruner(
        model, optimizer, method, config, example_inputs=(batch_at(0, IMAGE)[0],), total_steps=STEPS,
        batches=scoring_batches, loss_fn=F.cross_entropy,
    )  # fmt: skip
    train(model, optimizer, IMAGE, range(STEPS))
    removed = {report.step: report.removed for report in pruner.history if report.happened}
    assert removed == {STEPS // 2: 9, STEPS: 1}  # in the end, what the masks have emptied
    assert len(pruner.history) == STEPS + 1


# The clock, the config ----------------------------------------------------------------------------------


def test_an_epoch_of_the_data_has_a_length_that_somebody_must_say():
    with pytest.raises(
        UsageError, match="epoch_of is 'data', and the length of an epoch is not known; give epoch_steps"
    ):
        EarlySnap(EarlySnap.Config(epoch_of="data"), 500)
    assert EarlySnap(EarlySnap.Config(epoch_of="data", epoch_steps=391), 500).epoch_steps == 391


def test_an_epoch_is_a_hundredth_of_the_run_unless_the_trainer_says_better():
    method = EarlySnap(EarlySnap.Config(), 500)
    assert [step for step in range(26) if method.is_due(step)] == [0, 5, 10, 15, 20, 25]
    assert EarlySnap(EarlySnap.Config(), 7).epoch_steps == 1
    method = EarlySnap(EarlySnap.Config(epoch_steps=100, prune_by=0.25), 1000)
    assert [step for step in range(1001) if method.is_due(step)] == [*range(0, 201, 100), 250, *range(300, 1001, 100)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("trigger", "code"), ("epoch_of", "set"), ("epoch_steps", 0),
     ("prune_by", 0.0), ("prune_by", 1.1), ("target_neuron_sparsity", 1.0),
     ("score", "flow")],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: Any):
    with pytest.raises(UsageError, match=name):
        EarlyCropSConfig(**{name: value})


# Resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", mostly_slow(("inside", "at its ends"), quick=("inside",)))
@pytest.mark.parametrize(("name", "rule"), covering(("early-snap", "early-crop-s"), RULES))
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(name: str, rule: str, moments: str):
    """Saved inside an epoch and inside the step of the cut, or at their ends."""

    def parts(**more):
        model = build(ResidualNet, seed=3)
        optimizer = optimizer_of(model)
        return model, optimizer, attached(name, model, optimizer, trigger=rule, **more)

    def go(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            slower(optimizer, step)
            losses += train(model, optimizer, IMAGE, range(step, step + 1))
        return losses

    model, optimizer, pruner = parts()
    saves, losses = [], []
    for step in range(STEPS):
        buffer = io.BytesIO()
        torch.save([pruner.state_dict(), model.state_dict(), optimizer.state_dict()], buffer)
        saves.append(buffer.getvalue())
        losses += go(model, optimizer, range(step, step + 1))
    fired = pruner.history[0].step
    assert 2 * EPOCH < fired < STEPS
    for step in (EPOCH + 2, fired - 1) if moments == "inside" else (EPOCH, fired):
        again, again_optimizer, resumed = parts(resume=True)
        saved = torch.load(io.BytesIO(saves[step]), weights_only=True)
        for part, state in zip((resumed, again, again_optimizer), saved, strict=True):
            part.load_state_dict(state)
        assert go(again, again_optimizer, range(step, STEPS)) == losses[step:], f"saved at step {step}"
        pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert step >= fired or reports(resumed) == reports(pruner)


def reports(pruner: demp.Pruner) -> list[dict[str, Any]]:
    """The history, without the clock."""
    found = [asdict(report) for report in pruner.history]
    for report in found:
        del report["seconds"], report["surgery_seconds"]
    return found


def test_the_copy_of_the_weights_is_dropped_once_it_has_served():
    model = build(PlainNet)
    optimizer = sgd(model)
    pruner = attached("early-snap", model, optimizer, prune_by=0.1, target_neuron_sparsity=0.9, trigger="repository")
    before = copy.deepcopy(pruner.state_dict()["method_state"]["trigger"]["reference"])
    train(model, optimizer, IMAGE, range(4))
    during = pruner.state_dict()["method_state"]["trigger"]["reference"]
    train(model, optimizer, IMAGE, range(4, 8))
    after = pruner.state_dict()["method_state"]["trigger"]["reference"]
    assert before is None
    assert set(during) == {name for name, _ in model.named_parameters()}
    assert after is None
