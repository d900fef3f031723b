"""Parts of a model that its traced forward does not run: heads of other methods, momentum copies, lazy modules."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import killing
from demp.errors import UsageError
from demp.pruner.outside import nearest

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Headed(nn.Module):
    """A trunk that a second head reads, in a method that ``forward`` does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.trunk = nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(9, 9), nn.ReLU())
        self.head, self.aux = nn.Linear(9, 2), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.trunk(self.stem(x))))

    def auxiliary(self, x: Tensor, detached: bool = False) -> Tensor:
        features = self.trunk(self.stem(x))
        return self.aux(features.detach() if detached else features)


def dying() -> Headed:
    """Two neurons of every layer are dead."""
    torch.manual_seed(0)
    model = Headed().double()
    with torch.no_grad():
        for layer in (model.stem[0], model.trunk[1], model.mid[0]):
            layer.weight[:2], layer.bias[:2] = 0.0, -1.0
            layer.bias[2:] = 1.0
    return model


def steps(model: Headed, *, detached: bool = False, batches: bool = True) -> demp.Pruner:
    """Four steps of both losses with a check every two."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(X,), batches=[X] if batches else None, total_steps=4, period=2,
        peak_strength=0.0, peak_noise_std=0.0,
    )  # fmt: skip
    for _ in range(4):
        optimizer.zero_grad()
        (model(X).square().mean() + model.auxiliary(X, detached).square().mean()).backward()
        optimizer.step()
    return pruner


@pytest.mark.parametrize("batches", [True, False])
def test_neurons_stay_that_a_head_reads_outside_of_the_forward(batches, caplog):
    model = dying()
    with caplog.at_level(logging.WARNING, logger="demp"):
        pruner = steps(model, batches=batches)
    report = pruner.finish()
    assert [len(m.weight) for m in (model.stem[0], model.trunk[0], model.mid[0])] == [10, 9, 7]
    assert pruner.history[0].held == {"trunk.2": "2 refused by the graph"} and report.step == 4
    assert [r.message for r in caplog.records] == [
        "aux is not run by the forward that was traced, but reads 9 neurons: they stay. Let the forward of the example "
        "inputs run it, and they may go"
    ]
    assert not model.aux._forward_pre_hooks


def test_where_autograd_does_not_say_what_a_head_reads_everything_stays():
    model = dying()
    steps(model, detached=True).finish()
    assert [len(m.weight) for m in (model.stem[0], model.trunk[0], model.mid[0])] == [12, 9, 9]


def test_a_head_that_never_runs_keeps_nothing():
    model = dying()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = demp.DemP(model, optimizer, example_inputs=(X,), batches=[X], total_steps=4)
    copied = copy.deepcopy(model)
    copied.auxiliary(X)
    assert pruner.finish().removed == 6 and not model.aux._forward_pre_hooks


def test_the_nearest_parameters_of_a_residual_sum_are_those_of_both_sides():
    a, b, c = (nn.Linear(4, 4) for _ in range(3))
    norm, x = nn.BatchNorm1d(4), torch.randn(5, 4)
    h = torch.relu(a(x))
    found = nearest((norm(c(b(h))) + h).grad_fn)
    assert found == {id(p) for p in (*norm.parameters(), *c.parameters(), *a.parameters())}


# A momentum copy inside the model -----------------------------------------------------------------------


class Momentum(nn.Module):
    """A student, and a teacher that follows it."""

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.teacher = copy.deepcopy(self.student).requires_grad_(not frozen)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(x), self.teacher(x)


def attached(model: nn.Module) -> demp.Pruner:
    return demp.DemP(model, torch.optim.SGD(model.parameters(), 0.1), example_inputs=(X.float(),), total_steps=4)


def test_a_momentum_copy_inside_the_model_is_named():
    with pytest.raises(UsageError, match=r"teacher is a copy of student .*: copies=\[model.teacher\]"):
        attached(Momentum())
    other = Momentum()
    for p in other.teacher.parameters():
        nn.init.normal_(p)
    attached(other).detach()
    attached(Momentum(frozen=False)).detach()
    model = Momentum()
    demp.DemP(
        model.student, torch.optim.SGD(model.parameters(), 0.1), example_inputs=(X.float(),), total_steps=4,
        copies=[model.teacher],
    )  # fmt: skip


# Lazy modules -------------------------------------------------------------------------------------------


def lazy() -> nn.Module:
    parts = (nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(7), nn.ReLU())
    return nn.Sequential(*parts, nn.LazyLinear(3)).double()


def test_a_constructor_may_give_lazy_modules_again(tmp_path):
    model, x = lazy(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    model(x)
    killing.kill(model, demp.trace(model, (x,)), {"2": [0, 3], "5": [1]})
    assert demp.cut(model, {"2": [0, 3], "5": [1]}, example_inputs=(x,)).removed == 3
    loaded = demp.load(lazy, demp.save(model, tmp_path / "lazy"))
    assert comparing.gap(comparing.outputs(model, (x,)), comparing.outputs(loaded, (x,))) == 0.0


class Domains(nn.Module):
    """A norm for each domain, of which one runs in the trace; and a part that runs late in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norms = nn.Linear(6, 12), nn.ModuleDict({name: nn.BatchNorm1d(12) for name in "xy"})
        self.late, self.head, self.domain, self.deep = nn.Linear(12, 12), nn.Linear(12, 3), "x", False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norms[self.domain](self.a(x)))
        return self.head(torch.relu(self.late(h)) if self.deep else h)


def test_a_norm_that_the_trace_did_not_run_keeps_what_it_reads_and_other_parts_are_named(caplog):
    torch.manual_seed(0)
    model = Domains().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = demp.DemP(model, optimizer, example_inputs=(X,), batches=[X], total_steps=6, period=2, peak_strength=0.0)
    with torch.no_grad():
        model.norms["x"].weight[3], model.norms["x"].bias[3] = 0.0, -1.0
    with caplog.at_level(logging.WARNING, logger="demp"):
        for step in range(6):
            model.domain = "xy"[step % 2]
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    assert pruner.finish().removed == 0 and model.a.out_features == 12
    said = [r.message for r in caplog.records if "penalty" not in r.message]
    assert said[0].startswith("norms.y is not run by the forward that was traced, but reads 12 neurons: they stay")
    assert said[1].startswith("no forward has run late so far, and what they would read may go") and len(said) == 2
