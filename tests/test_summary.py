"""What a run says at its end and on the way: before and after, what stayed and why, what is next."""

import copy
import logging
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import demp
import forks
from demp.pruner.past import Past
from demp.pruner.summary import remarks_of
from runs import IMAGE, all_alive, examples, quiet_demp, sgd, train, with_dead
from test_pruner_cuts import own_steps


def test_finish_sums_up_the_run_and_not_the_last_check():
    model = with_dead(act1=[0, 3], act2=[4])
    dense = demp.cost(model, (examples(IMAGE),))
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=6, period=2)
    train(model, optimizer, IMAGE, range(6))
    report = pruner.finish()
    assert (report.removed, report.run.removed, report.run.cuts, report.run.checks) == (0, 3, 1, 3)
    small = demp.cost(model, (examples(IMAGE),))
    assert report.run.neurons == (18, 15)
    assert report.run.parameters == (dense.parameters, small.parameters) == (
        dense.parameters, sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    assert report.run.flops == (dense.flops, small.flops)
    lines = str(report).splitlines()
    assert lines[0] == "demp on PlainNet: step 6 of 6, 3 checks, 1 cut, 15 of 18 neurons left"
    assert lines[1] == "  neurons    18 -> 15 (16.7 % removed)"
    assert lines[2].startswith(f"  parameters {dense.parameters:,} -> {small.parameters:,} (")
    assert lines[3].startswith(f"  FLOPs      {dense.flops:,} -> {small.flops:,} (")
    assert lines[4:] == ["  last check: cut at step 6: nothing to remove (15 neurons)"]
    assert "run" not in report.to_dict() and report.to_dict().keys() == pruner.history[0].to_dict().keys()


def test_a_pruner_says_where_it_is_and_what_is_next():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=7, period=3)
    assert repr(pruner) == "<Pruner demp on PlainNet: step 0 of 7, 0 checks, 0 cuts, 18 of 18 neurons left>"
    train(model, optimizer, IMAGE, range(4))
    assert repr(pruner) == "<Pruner demp on PlainNet: step 4 of 7, 1 check, 1 cut, 17 of 18 neurons left>"
    text = str(pruner.summary())
    assert "next: a check at step 6" in text
    assert [line for line in text.splitlines() if "act" in line] == [
        "  act1: 5 of 6 neurons", "  act2: 5 of 5 neurons", "  act3: 7 of 7 neurons",
    ]  # fmt: skip
    train(model, optimizer, IMAGE, range(4, 7))
    assert pruner.summary().ahead == "next: the last check, in finish()"
    pruner.finish()
    assert pruner.summary().ahead == ""


def early(steps: int, **options) -> str:
    """What a run of 100 steps says that ended after ``steps``."""
    model = all_alive()
    optimizer = sgd(model, lr=1e-6)
    pruner = quiet_demp(model, optimizer, total_steps=100, **options)
    train(model, optimizer, IMAGE, range(steps))
    return pruner.finish().run.ahead


def test_a_run_that_ends_early_says_what_it_missed():
    peak = round(0.87 * 0.3 * 100) + 1  # 26.1: the first step past it is 27
    assert early(3, peak_strength=1e-4).startswith("ended at step 3 of 100: the schedule never peaked (at step 27, ")
    assert early(peak + 1, peak_strength=1e-4) == "ended at step 28 of 100"
    assert early(3, schedule="constant") == "ended at step 3 of 100"
    assert early(3, schedule="warm-up").startswith("ended at step 3 of 100: the schedule never peaked (at step 87, ")
    assert early(12, budget=demp.Budget(neurons=0.5)) == (
        "ended at step 12 of 100: the way to the budget had not ended (it does at step 50), so the rest went at once"
    )


def test_what_stayed_and_why():
    model = with_dead(act3=list(range(7)))
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=4, period=2, floor=2)
    train(model, optimizer, IMAGE, range(4))
    report = pruner.finish()
    (reason,) = report.held.values()
    assert f"  dead, but kept: act3, {reason}" in str(report).splitlines()


CUT = """
import torch, demp, logging
from torch import nn
{setup}
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
with torch.no_grad(): model[0].weight[:4] = 0; model[0].bias[:4] = -1
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
x = torch.randn(8, 6)
options = dict(total_steps=4, period=2, peak_strength=0.0, peak_noise_std=0.0)
pruner = demp.DemP(model, optimizer, example_inputs=(x,), **options)
for _ in range(4):
    model(x).square().sum().backward(); optimizer.step(); optimizer.zero_grad()
pruner.finish()
"""


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", 1),
        ("logging.basicConfig(level=logging.INFO)", 1),
        ("logging.getLogger('demp').addHandler(logging.NullHandler())", 0),
        ("logging.getLogger('demp').setLevel(logging.WARNING)", 0),
    ],
    ids=["nothing configured", "root configured", "silenced", "a higher level"],
)
def test_a_cut_is_seen_once_whatever_is_configured(setup: str, lines: int):
    done = forks.run([sys.executable, "-c", CUT.format(setup=setup)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    cuts = [line for line in done.stderr.splitlines() if "4 neurons of 12 removed" in line]
    assert len(cuts) == lines and not done.stdout
    if not setup:
        assert cuts[0].startswith("demp: cut at step 2: 4 neurons of 12 removed, parameters 123 -> 83")


def test_a_cut_is_logged_once(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]):
    model = with_dead(act1=[0])
    pruner = quiet_demp(model, sgd(model), total_steps=4, period=2, attach=False)
    with caplog.at_level(logging.INFO, logger="demp"):
        own_steps(pruner, range(4))
    assert [r.getMessage() for r in caplog.records] == [str(pruner.history[0])]
    assert capsys.readouterr().err == ""


def test_a_cut_of_live_neurons_is_told():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(8, 4)
    report = demp.cut(model, {"1": [0, 1, 2]}, example_inputs=(x,), exact=False)
    assert report.drift is not None and report.drift > 1e-3
    graph = demp.trace(model, (x,))
    line = f"drift: a cut changed the outputs by {report.drift:.1e} of their scale, the most of all"
    small = replace(report, drift=1e-5)
    assert line in remarks_of(graph, Past().then([small, report]), report)
    assert not any("drift" in remark for remark in remarks_of(graph, Past().then([small]), small))


def test_what_was_said_before_a_restart_counts():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    cut = demp.cut(model, {"1": [0]}, example_inputs=(torch.randn(8, 4),), exact=False)
    first, second = (replace(cut, step=step, notes=notes, drift=0.1) for step, notes in ((4, ("a", "b")), (8, ("a",))))
    third = replace(cut, step=12, drift=0.5)
    whole = Past().then([first, second, third])
    assert whole == Past(3, {"a": 2, "b": 1}, 0.5, 12)
    assert Past().then([first, second]).then([third]) == whole
    assert Past(**whole.state_dict()) == whole
    assert whole.without([second]) == Past(2, {"a": 1, "b": 1}, 0.5, 12)
    assert whole.without([second]).then([second]) == whole


def test_a_copy_that_changed_is_in_the_summary():
    """The copy's third neuron is alive where the model's is dead: with ``cut`` it goes, and the last lines say so."""
    model = with_dead(act1=[0, 3])
    average = copy.deepcopy(model)
    with torch.no_grad():
        average.norm1.weight[3], average.norm1.bias[3] = 1.0, 2.0
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=6, period=2, alive_in_copies="cut")
    pruner.add_copy(average)
    train(model, optimizer, IMAGE, range(6))
    assert "  drift of the copy PlainNet: one cut changed its outputs by" in str(pruner.finish())


def test_a_pruner_that_is_taken_off_says_so_once(caplog):
    caplog.set_level(logging.INFO, "demp")
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=6, period=2)
    train(model, optimizer, IMAGE, range(3))
    pruner.detach()
    pruner.detach()
    said = [r.message for r in caplog.records if "detached" in r.message]
    assert said == ["detached at step 3 of 6: nothing is pushed or removed from here on"]


def test_options_that_a_budget_replaces_are_named(caplog):
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = demp.DemP(model, optimizer, example_inputs=(examples(IMAGE),), total_steps=10, budget="flops=0.6",
                       peak_strength=0.5, criterion="saturated")  # fmt: skip
    train(model, optimizer, IMAGE, range(10))
    notes = [note for report in pruner.history for note in report.notes]
    said = "with a budget neurons fade, and these options do nothing: peak_strength, criterion"
    assert notes.count(said) == 1
