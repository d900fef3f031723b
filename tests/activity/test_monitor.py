"""NeuronMonitor: dead shares, overlap as in Appendix C, revivals; on its own."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import demp
from demp.errors import UsageError
from runs import IMAGE, VECTOR, Mlp, PlainNet, build, examples, hooks_on, kill, same, train


def silence(model: Mlp, neurons: list[int]) -> None:
    """Exactly these neurons of the first layer are dead; all others of both layers are alive."""
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight *= 0.01
            layer.bias[:] = 5.0
        model.fc1.bias[neurons] = -5.0


def test_shares_overlap_and_revivals_on_a_constructed_history():
    model = build(Mlp)
    monitor = demp.NeuronMonitor(model)
    snapshots = []
    for dead in ([0, 1], [1, 2], [0], [], [3]):
        silence(model, dead)
        model(examples(VECTOR))
        snapshots.append(monitor.snapshot())
    assert [s.layers["act1"].dead for s in snapshots] == [2, 2, 1, 0, 1]
    assert [s.layers["act1"].width for s in snapshots] == [12] * 5
    assert snapshots[0].layers["act1"].dead_share == pytest.approx(2 / 12)
    assert [s.dead_share for s in snapshots] == pytest.approx([2 / 22, 2 / 22, 1 / 22, 0, 1 / 22])
    # X: ever dead before, Y: dead now; |X & Y| / min(|X|, |Y|)
    overlaps = [s.overlap for s in snapshots]
    assert math.isnan(overlaps[0])
    assert overlaps[1:3] == [1 / 2, 1 / 1]
    assert math.isnan(overlaps[3])
    assert overlaps[4] == 0.0
    # of all that were ever dead, those that are dead now
    assert [s.still for s in snapshots[1:]] == [1 / 2, 1 / 3, 0.0, 0.0] and math.isnan(snapshots[0].still)
    assert [s.revived for s in snapshots] == [0, 1, 2, 1, 0]
    assert [s.layers["act1"].revived for s in snapshots] == [0, 1, 2, 1, 0]
    assert [s.layers["act2"].dead for s in snapshots] == [0] * 5
    assert monitor.history == snapshots


def test_a_snapshot_covers_the_forwards_since_the_last_one():
    model = build(Mlp)
    monitor = demp.NeuronMonitor(model)
    silence(model, [4])
    for s in range(3):
        model(examples(VECTOR, seed=s))
    first = monitor.snapshot()
    assert (first.batches, first.examples) == (3, 24)
    model(examples(VECTOR, n=2))
    second = monitor.snapshot()
    assert (second.batches, second.examples) == (1, 2)
    with pytest.raises(UsageError, match="has not run since the last snapshot"):
        monitor.snapshot()


@pytest.mark.parametrize("given", [True, False])
def test_the_first_forward_counts_with_and_without_example_inputs(given: bool):
    model = build(PlainNet)
    kill(model.norm1, [2])
    monitor = demp.NeuronMonitor(model, example_inputs=(examples(IMAGE),) if given else None)
    model(examples(IMAGE))
    snapshot = monitor.snapshot()
    assert snapshot.batches == 1
    assert snapshot.layers["act1"].dead == 1


def test_nothing_is_known_before_the_model_runs():
    with pytest.raises(UsageError, match="has not run"):
        demp.NeuronMonitor(build(Mlp)).snapshot()


def test_training_is_not_changed():
    watched, plain = build(PlainNet), build(PlainNet)
    monitor = demp.NeuronMonitor(watched)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    for model in (watched, plain):
        train(model, torch.optim.SGD(model.parameters(), lr=0.05), IMAGE, range(4))
    assert same(watched, plain)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert monitor.snapshot().batches == 4


@pytest.mark.parametrize("ran", [True, False])
def test_close_leaves_no_hooks(ran: bool):
    model = build(PlainNet)
    monitor = demp.NeuronMonitor(model)
    if ran:
        model(examples(IMAGE))
        monitor.snapshot()
    assert hooks_on(model) > 0
    monitor.close()
    assert hooks_on(model) == 0
    model(examples(IMAGE))


def test_recomputed_forwards_are_not_counted_again():
    class Checkpointed(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    model = build(Checkpointed)
    silence(model, [2, 3])
    monitor = demp.NeuronMonitor(model)
    for _ in range(2):
        model(examples(VECTOR)).sum().backward()
    snapshot = monitor.snapshot()
    assert (snapshot.batches, snapshot.examples) == (2, 16)
    assert [layer.dead for layer in snapshot.layers.values()] == [2, 0]


def test_the_criterion_can_be_chosen():
    model = build(Mlp, act=nn.GELU)
    silence(model, [1])
    monitors = {kind: demp.NeuronMonitor(model, criterion=kind) for kind in ("exact", "negative-only", "epsilon")}
    model(examples(VECTOR))
    dead = {kind: monitor.snapshot().layers["act1"].dead for kind, monitor in monitors.items()}
    assert dead == {"exact": 0, "negative-only": 1, "epsilon": 1}


def test_tracing_is_no_forward_of_the_model():
    """A pruner attached after the monitor reads the same graph as without it."""
    model = build(PlainNet)
    monitor = demp.NeuronMonitor(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = demp.DemP(model, optimizer, example_inputs=(examples(IMAGE),), total_steps=10, dynamic=False)
    assert ([layer.name for layer in pruner.graph.layers], pruner.graph.vehicle) == (["act1", "act2", "act3"], "meta")
    with pytest.raises(UsageError, match="has not run"):
        monitor.snapshot()
    train(model, optimizer, IMAGE, range(2))
    assert monitor.snapshot().batches == 2


def test_a_model_that_was_cut_meanwhile_must_be_watched_anew():
    model = build(Mlp)
    silence(model, [0, 1])
    monitor = demp.NeuronMonitor(model)
    model(examples(VECTOR))
    demp.cut(model, {"act1": [0, 1]}, example_inputs=(examples(VECTOR),))
    with pytest.raises(UsageError, match=r"reads 10 neurons where there were 12.*start watching again"):
        model(examples(VECTOR))
    monitor.close()
    monitor = demp.NeuronMonitor(model)
    model(examples(VECTOR))
    assert monitor.snapshot().layers["act1"].width == 10


def test_with_its_pruner_a_monitor_follows_the_cuts():
    """Dense numbering throughout; removed neurons count as dead; what was seen before a cut still counts."""
    model = build(Mlp)
    silence(model, [0, 1])
    batches = [examples(VECTOR, seed=s) for s in (1, 2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(VECTOR),), batches=batches, total_steps=9, peak_noise_std=0.0,
        peak_strength=0.0, period=2, penalty_on="parameters",
    )  # fmt: skip
    monitor = demp.NeuronMonitor(model, pruner=pruner)
    train(model, optimizer, VECTOR, range(1))
    with torch.no_grad():
        model.fc1.bias[5] = -5.0  # dead from now on, alive before
    train(model, optimizer, VECTOR, range(3))
    assert model.fc1.out_features == 9  # cut at step 2
    first = monitor.snapshot()
    assert (first.batches, first.layers["act1"].width, first.layers["act1"].dead) == (4, 12, 3)
    assert first.layers["act2"].dead == 0
    with torch.no_grad():
        model.fc1.bias[1] = -5.0  # dense neuron 3, the second that is left
    train(model, optimizer, VECTOR, range(1))
    second = monitor.snapshot()
    assert (second.layers["act1"].dead, second.overlap, second.still, second.revived) == (4, 1.0, 1.0, 0)
    monitor.close()
    pruner.detach()
    assert hooks_on(model) == 0


def test_the_pruner_must_be_of_the_model():
    model, other = build(Mlp), build(Mlp)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    options = {"example_inputs": (examples(VECTOR),), "total_steps": 9, "penalty_on": "parameters"}
    with pytest.raises(UsageError, match="this pruner is of another model"):
        demp.NeuronMonitor(model, pruner=demp.DemP(other, optimizer, **options))


class Scaled(nn.Module):
    """Takes a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build(Mlp)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        out = self.body(x)
        return out if scale is None else out * scale


@pytest.mark.parametrize("call", ["positional", "keyword", "mixed"])
def test_models_may_be_called_with_positional_and_keyword_arguments(call: str):
    model = Scaled()
    silence(model.body, [0, 7])
    monitor = demp.NeuronMonitor(model)
    x, scale = examples(VECTOR), torch.tensor(2.0)
    for _ in range(2):
        if call == "positional":
            model(x, scale)
        elif call == "keyword":
            model(x=x, scale=scale)
        else:
            model(x, scale=scale)
    snapshot = monitor.snapshot()
    assert (snapshot.batches, snapshot.examples) == (2, 16)
    assert snapshot.layers["body.act1"].dead == 2


def test_saturated_neurons_are_counted_apart():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0.0, torch.tensor([-1.0, 2.0, 3.0])
    monitor = demp.NeuronMonitor(model, criterion="saturated")
    for _ in range(3):
        model(torch.randn(6, 4))
    snapshot = monitor.snapshot()
    assert (snapshot.layers["1"].dead, snapshot.layers["1"].saturated) == (1, 2)
    assert (snapshot.dead_share, snapshot.saturated_share) == (0.2, 0.4)
    with torch.no_grad():
        model[0].weight[1] = 1.0
    model(torch.randn(6, 4))
    again = monitor.snapshot()
    assert (again.layers["1"].saturated, again.revived) == (1, 0)
    monitor.close()
