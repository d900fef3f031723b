"""benchmarks/peers.py: peers train in demp's trainer, land on the budget, and finished runs are not repeated."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import demp
from demp.errors import UsageError
from demp.train import train
from demp.train.run import Run

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import peer_hesso
import peer_pruning
import peers

sys.path.pop(0)

SMALL = "--data digits --recipe digits --width 0.1 --batch-size 16 --validation 0.2 --seeds 1"
TORCH_PRUNING = ("tp-bn-scale", "tp-group-norm")
needs_hesso = pytest.mark.skipif(
    importlib.util.find_spec("only_train_once") is None, reason="only-train-once is no dependency"
)


def config(steps, optimizer="adamw"):
    base = peers.base_config(peers.parsed(f"{SMALL} --steps {steps} --optimizer {optimizer}".split()))
    return base.merged({"method": {"name": "dense"}})


def run_with(settings, steps, budget, optimizer="adamw"):
    """A run whose pruner is the peer, before its first step, and its batches."""
    run = Run(config(steps, optimizer))
    run.pruner = settings.attach(run, budget * run.dense_cost.flops)
    return run, run.data.train_batches(0, steps)


def flops_by_hand(model, x):
    """2 per multiply-add of every convolution and linear layer, from the shapes that pass."""
    found = []

    def count(module, inputs, output):
        found.append(2 * output.numel() * module.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize("method", TORCH_PRUNING)
def test_torch_pruning_stops_at_the_first_network_within_the_budget(method, monkeypatch):
    counts = []
    own = peer_pruning.Shapes.flops
    monkeypatch.setattr(peer_pruning.Shapes, "flops", lambda shapes: counts.append(own(shapes)) or counts[-1])
    guest = peers.Guest(replace(peers.PEERS[method], step=1 / 50), 0.5)
    result = train(config(4), observers=[guest])
    summary, x = result.summary, guest.peer.run.example[0]
    limit = 0.5 * summary["flops_dense"]
    assert all(count > limit for count in counts[:-1]) and counts[-1] <= limit
    with FlopCounterMode(display=False) as counter:
        result.model.eval()(x)
    by_hand = flops_by_hand(result.model, x)
    assert by_hand == counts[-1] == counter.get_total_flops() == summary["flops"] == demp.cost(result.model, (x,)).flops
    assert summary["parameters"] == sum(p.numel() for p in result.model.parameters()) < summary["parameters_dense"]
    assert result.model.fc.out_features == 10


def test_the_bn_scale_regulariser_acts_before_the_pruning_alone():
    run, batches = run_with(replace(peers.PEERS["tp-bn-scale"], step=1 / 50, regularizer=0.25), 4, 0.5)
    seen = []
    own = run.pruner.before_step

    def watched():
        scales = [m.weight for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [scale.grad.clone() for scale in scales]
        own()
        seen.append([(scale.grad - old, scale.sign()) for scale, old in zip(scales, before, strict=True)])

    run.pruner.before_step = watched
    for _ in range(3):
        run.train_step(*next(batches))
    for added in seen[:2]:
        assert all(torch.allclose(more, 0.25 * sign, atol=1e-6) for more, sign in added)
    assert all(not more.any() for more, _ in seen[2])


def test_without_regulariser_the_steps_before_the_pruning_are_those_of_dense_training():
    dense = Run(config(8))
    run, batches = run_with(replace(peers.PEERS["tp-bn-scale"], regularizer=0.0), 8, 0.5)
    for x, y in (next(batches) for _ in range(3)):
        dense.train_step(x, y)
        run.train_step(x, y)
    pairs = zip(dense.model.parameters(), run.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_budget_out_of_reach_is_refused():
    with pytest.raises(UsageError, match="cannot remove enough for 0.000 of the FLOPs"):
        train(config(2), observers=[peers.Guest(replace(peers.PEERS["tp-bn-scale"], step=1 / 4), 1e-5)])


def test_finished_runs_are_not_repeated(tmp_path, monkeypatch, capsys):
    command = f"{SMALL} --steps 2 --budget 0.5 --methods dense narrow tp-bn-scale --out {tmp_path}".split()
    command += ["--option", "tp-bn-scale.step=0.05"]
    peers.main(command)
    first = capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["method"] for record in records] == ["dense", "narrow", "tp-bn-scale"]
    assert all(record["flops"] <= 0.5 * record["flops_dense"] for record in records[1:])
    assert len({record["initial_weights"] for record in records}) == 1
    assert {record["split"] for record in records} == {"validation"}
    rows = [line.split(" | ") for line in first.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows[1:]] == ["| dense", "| narrow", "| tp-bn-scale"]
    assert rows[1][3:] == ["1.000", "1.000", "1.00", "1.00 |"]

    trained = []
    monkeypatch.setattr(peers, "train", lambda config, **_: trained.append(config) or pytest.fail("trained again"))
    peers.main(command)
    assert capsys.readouterr().out == first and not trained
    with pytest.raises(pytest.fail.Exception):
        peers.main([*command, "--test"])  # another experiment
    assert trained[0].data.validation == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--budget 1.5", "budget is 1.5"),
        ("--validation 0", "validation is 0; give a share in"),
        ("--methods dense --option hesso.periods=5", "not among --methods"),
        ("--methods tp-bn-scale --option tp-bn-scale.reg=1", "no option 'reg'; it has regularizer, sparse_share, step"),
        ("--methods dense prune-train", "prune-train has no target"),
        ("--methods dense nothing", "unknown method 'nothing'"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, sentence, tmp_path):
    with pytest.raises(SystemExit) as stop:
        peers.main([*SMALL.split(), "--steps", "2", "--out", str(tmp_path), *arguments.split()])
    assert sentence in stop.value.code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "package"), [("hesso", "only_train_once"), ("tp-group-norm", "torch_pruning")])
def test_a_missing_package_is_told_before_the_first_run(method, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        peers.main([*SMALL.split(), "--steps", "2", "--out", str(tmp_path), "--methods", "dense", method])
    assert f"{package} cannot be imported" in stop.value.code and "pip install" in stop.value.code
    assert not list(tmp_path.iterdir())


@needs_hesso
def test_before_its_first_period_hesso_is_the_optimizer_that_it_replaces():
    dense = Run(config(12, "sgdm"))
    run, batches = run_with(replace(peer_hesso.Hesso(), start=0.5), 12, 0.5, "sgdm")
    for x, y in (next(batches) for _ in range(4)):
        dense.train_step(x, y)
        run.train_step(x, y)
    pairs = zip(dense.model.parameters(), run.model.parameters(), strict=True)
    assert all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in pairs)


@needs_hesso
@pytest.mark.parametrize("optimizer", ["adamw", "sgdm"])
def test_hesso_lands_with_the_fewest_groups_and_their_removal_changes_no_output(optimizer):
    run, batches = run_with(replace(peer_hesso.Hesso(), start=0.2, span=0.4, periods=2), 10, 0.5, optimizer)
    needed, own = [], run.pruner.needed

    def watched():
        needed.append(own())
        assert run.pruner.flops_after(needed[-1]) <= run.pruner.limit < run.pruner.flops_after(needed[-1] - 1)
        return needed[-1]

    run.pruner.needed = watched
    for _ in range(10):
        run.train_step(*next(batches))
    assert len(needed) == 2
    run.model.eval().double()
    run.example = (run.example[0].double(),)
    x = run.data.example(8).double()
    before = run.model(x)
    run.finish()
    assert (run.model(x) - before).abs().max() < 1e-10
    cost = demp.cost(run.model, run.example)
    assert cost.flops == flops_by_hand(run.model, run.example[0]) == run.pruner.flops <= run.pruner.limit


@needs_hesso
def test_hesso_without_a_variant_of_the_optimizer_is_refused():
    with pytest.raises(UsageError, match="no variant of sgdw"):
        run_with(peer_hesso.Hesso(), 10, 0.5, "sgdw")
