"""Compiled models and optimizer steps: compiled anew after every cut, never run eagerly, and traced as written."""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import demp
from demp.activity.detector import UNSEEN
from demp.errors import UsageError
from demp.parallel import compiled
from runs import IMAGE, examples, kill_linear, loss_of, same, with_dead

CUTS = 12
"""Dynamo gives up at 8 versions of one piece of code."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counter:
    """A backend that counts what it compiles and runs it as it is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


class Net(nn.Module):
    """Two linear layers that note every forward that no compiler sees."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)
        self.eager = 0

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.eager += 1
        return self.head(self.act(self.fc(x)))


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network() -> Net:
    """All neurons speak."""
    torch.manual_seed(0)
    net = Net().double()
    with torch.no_grad():
        net.fc.bias.fill_(3.0)
    return net


class Part(nn.Module):
    """A network around the one that is compiled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def train(model: nn.Module, net: Net, called: Callable[[Tensor], Tensor], step: Callable | None = None) -> Any:
    """Two steps, a cut, two steps, a cut ...: the pruner, the losses, and what ``step`` counted after each step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    options = {"example_inputs": (X,), "batches": [X], "total_steps": 1000, "peak_noise_std": 0.0, "period": 2}
    pruner = demp.DemP(model, optimizer, **options)
    losses, seen = [], []
    for at in range(2 * CUTS + 2):
        if at % 2 and at < 2 * CUTS:
            kill_linear(net.fc, [0])
        optimizer.zero_grad()
        loss = called(X).square().mean()
        loss.backward()
        seen.append(step(optimizer) if step else optimizer.step())
        losses.append(loss.item())
    assert [r.removed for r in pruner.history] == [1] * CUTS + [0]
    assert net.fc.out_features == 16 - CUTS
    return losses, seen


def counting(called: Callable[[Tensor], Tensor], net: Net, backend: Counter, counts: list[int]) -> Callable:
    """``called``, noting after each call how often the backend compiled; a call that ran eagerly fails."""

    def call(x: Tensor) -> Tensor:
        before = net.eager
        out = called(x)
        assert net.eager == before, "ran in eager mode"
        counts.append(backend.count)
        return out

    return call


ANEW_AFTER_EVERY_CUT = [1 + at // 2 for at in range(2 * CUTS + 2)]


OTHERS = ("in place", "wrapper, module given", "part", "function")
WAYS = ["wrapper", *(pytest.param(how, marks=pytest.mark.slow) for how in OTHERS)]


@pytest.mark.parametrize("how", WAYS)
def test_every_cut_compiles_once_and_nothing_runs_eagerly(how, caplog):
    plain = network()
    wanted, _ = train(plain, plain, plain)
    net, backend, counts = network(), Counter(), []
    model = called = net
    if how.startswith("wrapper"):
        called = torch.compile(net, backend=backend)
        model = net if how.endswith("given") else called
    elif how == "in place":
        net.compile(backend=backend)
    elif how == "part":
        model = called = Part(torch.compile(net, backend=backend))
        wanted, _ = train(twin := Part(network()), twin.inner, twin)
    else:
        called = torch.compile(lambda x: net(x), backend=backend)
    losses, _ = train(model, net, counting(called, net, backend, counts))
    assert counts == ANEW_AFTER_EVERY_CUT
    assert losses == wanted
    known = how in ("wrapper", "in place", "part")  # a cut after every second step does not pay for its compilation
    assert sum("Cut less often" in record.message for record in caplog.records) == known


@pytest.mark.slow
@pytest.mark.parametrize("how", ["bound", "function"])
def test_a_compiled_optimizer_step_is_compiled_anew(how):
    plain, net, backend = network(), network(), Counter()
    wanted, _ = train(plain, plain, plain)
    steps: list[Callable] = []

    def step(optimizer: torch.optim.Optimizer) -> int:
        if not steps and how == "bound":
            optimizer.step = torch.compile(optimizer.step, backend=backend)
            steps.append(optimizer.step)
        elif not steps:
            steps.append(torch.compile(lambda: optimizer.step(), backend=backend))
        steps[0]()
        return backend.count

    losses, counts = train(net, net, net, step)
    assert counts == [1] + [1 + count for count in ANEW_AFTER_EVERY_CUT[1:]]  # the first step has no momentum yet
    assert losses == pytest.approx(wanted, rel=1e-12)


def test_without_the_reset_dynamo_gives_up(monkeypatch):
    """The reason for it all; fails when Dynamo learns to do better."""
    monkeypatch.setattr("demp.surgery.shrink.forget_compiled_code", lambda: None)
    net, backend, counts = network(), Counter(), []
    with pytest.raises(AssertionError, match="ran in eager mode"):
        train(net, net, counting(torch.compile(net, backend=backend), net, backend, counts))
    assert counts == ANEW_AFTER_EVERY_CUT[:16]


def test_every_door_takes_a_compiled_model(tmp_path):
    net, backend = network(), Counter()
    kill_linear(net.fc, [0, 2])
    model = torch.compile(net, backend=backend)
    model(X)
    plain = copy.deepcopy(net)
    graph = demp.trace(model, (X,))
    assert graph.shapes == demp.trace(plain, (X,)).shapes
    assert demp.alive(model, [(X,)])["act"].tolist() == [at not in (0, 2) for at in range(16)]
    assert demp.inspect(model, (X,)).rows == demp.inspect(plain, (X,)).rows
    report = demp.cut(model, {"act": [0, 2]}, example_inputs=(X,))
    demp.cut(plain, {"act": [0, 2]}, example_inputs=(X,))
    assert report.removed == 2 and same(net, plain)
    assert demp.cost(model, (X,)) == demp.cost(plain, (X,))
    demp.save(model, tmp_path / "small")
    loaded = demp.load(network, tmp_path / "small")
    assert torch.equal(loaded(X), plain(X)) and torch.equal(model(X), plain(X))
    assert backend.count == 2  # one before the cut, one after it: nothing else compiled anything


@pytest.mark.parametrize("average", [False, True])
def test_compiled_copies_follow(average):
    net, backend = network(), Counter()
    kill_linear(net.fc, [0])
    model = torch.compile(net, backend=backend)
    ema = AveragedModel(model) if average else torch.compile(copy.deepcopy(net), backend=backend)
    demp.cut(model, {"act": [0]}, example_inputs=(X,), copies=[ema])
    if average:
        ema.update_parameters(model)
    assert torch.equal(ema(X), model(X))
    assert [p.shape for p in ema.parameters()] == [p.shape for p in net.parameters()]


# Watching -----------------------------------------------------------------------------------------------


def test_compiled_forwards_are_not_watched():
    net = network()
    net.compile(backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for watch in (
        lambda: demp.DemP(net, optimizer, example_inputs=(X,), total_steps=10),
        lambda: demp.DemP(net, optimizer, example_inputs=(X,), total_steps=10, batches=[X], collect="window"),
        lambda: demp.NeuronMonitor(Part(net)),
    ):
        with pytest.raises(UsageError, match="the forwards of a compiled model cannot be watched; give training exam"):
            watch()


# Does it pay? -------------------------------------------------------------------------------------------


def test_the_hint():
    assert compiled.hint(compiling=10.0, saved=0.5, steps=20) is None
    assert compiled.hint(compiling=10.0, saved=0.5, steps=19) == (
        "compiling after a cut took 10.0 s and the cut saved 500.0 ms per step: that pays after 20 steps, and the next "
        "cut came after 19. Cut less often (a longer period), or compile after the last cut"
    )
    assert "saved 0.0 ms per step: that never pays" in str(compiled.hint(compiling=10.0, saved=-0.1, steps=10**6))


def told(monkeypatch, caplog, segments: list[list[float]], on: bool = True) -> list[str]:
    """What a stopwatch says of steps of these lengths, cut after each list."""
    now = [0.0]
    monkeypatch.setattr(compiled.time, "perf_counter", lambda: now[0])
    watch = compiled.Stopwatch(on)
    watch.start(after_cut=False)
    with caplog.at_level(logging.WARNING, logger="demp"):
        for segment in segments:
            for at, seconds in enumerate(segment):
                now[0] += seconds
                watch.stop()
                now[0] += 100.0  # the pruner's own work is not the user's step
                watch.start(after_cut=at == len(segment) - 1)
    return [record.message for record in caplog.records]


def test_the_stopwatch_advises_once(monkeypatch, caplog):
    slow = [9.0, 1.0, 1.0, 2.0]
    advice = told(monkeypatch, caplog, [slow, [8.5, 0.5, 0.5, 0.5], [8.5, 0.25, 0.25], [9, 0.1, 0.1]])
    assert advice == [compiled.hint(compiling=8.0, saved=0.5, steps=4)]


@pytest.mark.parametrize(
    ("segments", "on"),
    [
        ([[9.0, 1.0, 1.0], [8.5] + [0.5] * 16], True),  # pays to the step
        ([[9.0, 1.0, 1.0], [1.2, 1.1, 1.1]], True),  # did not compile
        ([[9.0, 1.0, 1.0]], True),  # nothing to compare with
        ([[9.0], [9.0], [9.0]], True),  # no step that does not compile
        ([[9.0, 1.0, 1.0], [9.0, 1.0, 1.0]], False),
    ],
)
def test_the_stopwatch_is_silent(monkeypatch, caplog, segments, on):
    assert told(monkeypatch, caplog, segments, on) == []


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # Dynamo looks at a graph's inputs
@pytest.mark.parametrize("window_steps", [2, 4])
def test_a_watched_module_whose_wrapper_is_called(window_steps):
    """The pruner knows the module only. What was compiled before the window opened is not seen; the report says so."""
    model = with_dead(act1=[0])
    called = torch.compile(model, backend=Counter())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options = {"example_inputs": (examples(IMAGE),), "total_steps": 8, "period": 4, "window_steps": window_steps}
    pruner = demp.DemP(model, optimizer, **options)
    for step in range(8):
        optimizer.zero_grad()
        loss_of(called, step, IMAGE).backward()
        optimizer.step()
    found = [(report.removed, report.notes[-1:]) for report in pruner.history]
    assert found == ([(0, (UNSEEN,))] * 2 if window_steps == 2 else [(1, ()), (0, ())])
