"""Methods and constants: saturated neurons in a run of DemP, and the switch of methods that choose living ones."""

import io

import pytest
import torch
from torch import nn

import demp
from demp.methods import create
from runs import IMAGE, PlainNet, ResidualNet, all_alive, build, examples, sgd, train
from thinning import covering

BATCHES = [examples(IMAGE, n=16, seed=seed) for seed in (1, 2)]


@torch.no_grad()
def flatten_out(norm: nn.Module, neurons: list[int]) -> None:
    """These neurons say nearly the same whatever the input."""
    norm.weight[neurons] *= 1e-3  # type: ignore[index,operator]
    norm.bias[neurons] = 1.0  # type: ignore[index]


STOPS = (5, 9)


def saturating_run(kind: type[nn.Module], *, probe: bool, saved: bytes | None = None):
    """DemP by the criterion saturated; two neurons of one layer go flat every third step. Saved at STOPS."""
    model = build(kind, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    options = {"batches": lambda seed: [examples(IMAGE, n=8, seed=31 * seed + i) for i in range(2)]} if probe else {}
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(IMAGE),), total_steps=12, period=3, criterion="saturated", seed=5,
        peak_noise_std=1e-3, window_steps=2, max_drift=0.1, **options,
    )  # fmt: skip
    if saved is not None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        pruner.load_state_dict(state["pruner"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    kept = {}
    for step in range(pruner.step, 12):
        if step in STOPS:
            buffer = io.BytesIO()
            parts = {"pruner": pruner, "model": model, "optimizer": optimizer}
            torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
            kept[step] = buffer.getvalue()
        if step % 3 == 0:
            flatten_out(model.norm1, [0, 1])
        train(model, optimizer, IMAGE, range(step, step + 1))
    return model, pruner, kept


@pytest.mark.parametrize(("kind", "probe"), covering((PlainNet, ResidualNet), (True, False)))
def test_a_run_loses_its_saturated_neurons_and_resumes_to_the_bit(kind, probe):
    whole, pruner, kept = saturating_run(kind, probe=probe)
    reports = [report for report in pruner.history if report.happened]
    assert sum(report.saturated for report in reports) >= 2
    for report in reports:
        assert report.dead + report.saturated == report.removed
        assert report.difference < 1e-10 and report.drift <= 0.1
    for stop in STOPS:
        resumed, _, _ = saturating_run(kind, probe=probe, saved=kept[stop])
        left, right = whole.state_dict(), resumed.state_dict()
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


OPTIONS = {
    "apoz": {"rounds": 1, "prune_from": 0.3, "prune_to": 0.3, "target_neuron_sparsity": 0.3},
    "network-slimming": {"prune_at": 0.3, "target_neuron_sparsity": 0.3},
    "greg-1": {"start_at": 0.0, "grow": 0.2, "stabilise": 0.1, "target_neuron_sparsity": 0.3},
    "greg-2": {"start_at": 0.0, "pick": 0.1, "grow": 0.1, "stabilise": 0.1, "target_neuron_sparsity": 0.3},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_living_neurons_leave_with_their_means_where_that_changes_less(method):
    reports = {}
    for constants in (False, True):
        model = all_alive()
        optimizer = sgd(model, lr=1e-3)
        pruner = create(
            method, model, optimizer, example_inputs=(examples(IMAGE),), total_steps=10, batches=BATCHES,
            constants=constants, **OPTIONS[method],
        )  # fmt: skip
        if method == "apoz":  # somebody must be zero now and then
            with torch.no_grad():
                model.norm1.bias[:3] = 0.0
        train(model, optimizer, IMAGE, range(10))
        reports[constants] = next(report for report in pruner.history if report.happened)
    dropped, moved = reports[False], reports[True]
    assert dropped.removed == moved.removed > 0 and dropped.hash == moved.hash
    assert (dropped.dead, dropped.saturated) == (None, None)
    assert moved.difference < 1e-9 and moved.drift < 0.5 * dropped.drift
    assert any(note.startswith("constants moved to the readers: drift") for note in moved.notes)


def test_under_autocast_and_compiled_a_run_loses_its_saturated_neurons():
    model = build(PlainNet, seed=1, dtype=torch.float32)
    called = torch.compile(model, backend="eager")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    batches = [batch.float() for batch in BATCHES]
    pruner = demp.DemP(
        called, optimizer, example_inputs=(batches[0],), total_steps=6, period=3, criterion="saturated",
        batches=batches, peak_noise_std=0.0,
    )  # fmt: skip
    for step in range(6):
        if step % 3 == 0:
            flatten_out(model.norm1, [0, 1])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = called(examples(IMAGE, n=16, seed=step, dtype=torch.float32)).float().square().mean()
        loss.backward()
        optimizer.step()
    assert sum(report.saturated for report in pruner.history) >= 1
    assert all(report.difference < 1e-4 and report.drift <= 0.02 for report in pruner.history if report.happened)
