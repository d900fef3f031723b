"""A run that removes nothing says why, and what to change: once at half of it, and at its end."""

import logging

import torch
from torch import nn
from torch.nn import functional as F

import demp
from runs import IMAGE, PlainNet, all_alive, quiet_demp, train, with_dead


def run(model, caplog, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    pruner = quiet_demp(model, optimizer, total_steps=20, period=4, peak_strength=1e-3, **options)
    with caplog.at_level(logging.INFO, logger="demp"):
        train(model, optimizer, IMAGE, range(20))
        report = pruner.finish()
    return pruner, report, [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_it_warns_twice_and_the_last_report_says_it(caplog):
    model = all_alive(PlainNet)
    pruner, report, warnings = run(model, caplog)
    assert len(warnings) == 2
    assert warnings[0].startswith("nothing was removed by step 12 of 20: every neuron still answers to some example")
    norms = [norm.weight.detach().abs() for norm in (model.norm1, model.norm2)]
    scales = torch.cat([*norms, model.fc.weight.detach().abs().sum(1)])
    for text in (f"the smallest is {scales.min():.2g}, the median {scales.median():.2g}", "demp.Budget(flops=0.5)"):
        assert text in warnings[1] and text in str(report)
    lines = str(report).splitlines()
    assert lines[0] == "demp on PlainNet: step 20 of 20, 5 checks, 0 cuts, 18 of 18 neurons left"
    assert lines[-2].startswith("  note: nothing was removed by step 20 of 20")
    assert lines[-1] == "  last check: cut at step 20: nothing to remove (18 neurons)"
    assert sum("nothing was removed" in note for r in pruner.history for note in r.notes) == 2


def test_a_run_that_removes_somebody_says_nothing(caplog):
    _, _, warnings = run(with_dead(act1=[0]), caplog)
    assert not warnings


def test_a_run_with_a_budget_says_where_it_landed(caplog):
    _, report, warnings = run(all_alive(PlainNet), caplog, budget="flops=0.5")
    assert not warnings and "as far as it must be" in str(report)


def test_the_advice_is_given_once_also_after_a_resume(caplog):
    def begun():
        model = all_alive(PlainNet)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        return model, optimizer, quiet_demp(model, optimizer, total_steps=20, period=4, peak_strength=1e-3)

    model, optimizer, pruner = begun()
    train(model, optimizer, IMAGE, range(13))
    state = pruner.state_dict()
    again, follows, resumed = begun()
    resumed.load_state_dict(state)
    again.load_state_dict(model.state_dict())
    follows.load_state_dict(optimizer.state_dict())
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="demp"):
        train(again, follows, IMAGE, range(13, 17))
    assert not caplog.records and resumed.history[-1].step == 16


class Functional(nn.Module):
    """Its last layer is called past its module, as adapters and hand-written code do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        return F.linear(torch.relu(self.a(x)), self.b.weight, self.b.bias)


def test_where_nobody_could_be_judged_the_strength_is_not_to_blame(caplog):
    model, x = Functional(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=20, period=4, peak_strength=1e-3)
    with caplog.at_level(logging.WARNING, logger="demp"):
        for _ in range(20):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    said = [r.getMessage() for r in caplog.records if "nothing was removed" in r.getMessage()]
    assert len(said) == 2 and "Pass batches=[...]" in said[0] and "Pass batches=[...]" in str(pruner.finish())
    assert "strength" not in "".join(said)
