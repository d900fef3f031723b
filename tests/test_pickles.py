"""Models as torch.save and pickle write them, whole."""

import copy
import importlib
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import multiprocessing, nn

import demp
from demp.errors import UsageError
from demp.surgery import record_of
from demp.surgery.beside import RECORD
from demp.surgery.record import Record
from runs import IMAGE, PlainNet, ResidualNet, build, examples, hooks_on, kill, train

ALONE = """
import sys
sys.modules["demp"] = None
import torch
model = torch.load(sys.argv[1], weights_only=False)
torch.save(model.eval()(torch.load(sys.argv[2])), sys.argv[3])
"""
"""What a process without demp does."""


def cut_stack() -> nn.Sequential:
    """A perceptron of torch's own modules, less two neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0.0, -1.0
    assert demp.cut(model, {"1": [0, 1]}, example_inputs=(torch.randn(2, 6),)).removed == 2
    return model


def test_a_finished_model_loads_where_demp_is_not_installed(tmp_path):
    model, x = cut_stack(), torch.randn(5, 6)
    files = [tmp_path / name for name in ("model.pt", "x.pt", "y.pt")]
    torch.save(model, files[0])
    torch.save(x, files[1])
    done = subprocess.run([sys.executable, "-c", ALONE, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(files[2]), model(x))


ADDING = """
from torch import nn

class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (nn.Linear(6, n) for n in (6, 6, 6, 3))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x):
        x = self.acts[0](self.stem(x))
        return self.head(self.acts[2](self.outer(self.acts[1](self.inner(x))) + x))
"""


def test_with_a_planned_sum_its_plain_copy_loads_there(tmp_path, monkeypatch):
    (tmp_path / "adding.py").write_text(ADDING)
    monkeypatch.syspath_prepend(tmp_path)
    model, x = importlib.import_module("adding").Adding(), torch.randn(5, 6)
    with torch.no_grad():
        for layer, gone in ((model.stem, [0, 1]), (model.outer, [0, 3]), (model.inner, [2])):
            layer.weight[gone], layer.bias[gone] = 0.0, -1.0
        model.outer.bias[[0, 3]] = -100.0
    report = demp.cut(model, {"acts.0": [0, 1], "acts.2": [0], "acts.1": [2]}, example_inputs=(x,), exact=False)
    assert report.removed >= 3 and demp.graph.joins.model_joins(model)
    files = [tmp_path / name for name in ("model.pt", "x.pt", "y.pt")]
    torch.save(x, files[1])
    for saved, loads in ((model, False), (demp.plain(model), True)):
        torch.save(saved, files[0])
        run = [sys.executable, "-c", ALONE, *map(str, files)]
        done = subprocess.run(run, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)})
        assert (done.returncode == 0) is loads, done.stderr
        assert loads or "demp" in done.stderr
    assert torch.allclose(torch.load(files[2]), model(x), atol=1e-6)


def test_it_loads_under_weights_only_with_the_classes_of_torch_alone(tmp_path):
    model, file = cut_stack(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.ReLU, set]):
        loaded = torch.load(file, weights_only=True)
    x = torch.randn(5, 6)
    assert torch.equal(loaded(x), model(x)) and record_of(loaded) is not None


def test_what_is_remembered_is_plain_and_survives(tmp_path):
    model = build(PlainNet)
    kill(model.norm1, [1, 4])
    demp.cut(model, {"act1": [1, 4]}, example_inputs=(examples(IMAGE),))
    before = record_of(model)
    assert isinstance(before, Record) and isinstance(getattr(model, RECORD), dict)
    after = record_of(pickle.loads(pickle.dumps(model)))
    assert after is not None and before.kept.keys() == after.kept.keys()
    assert all(torch.equal(keep, after.kept[key]) for key, keep in before.kept.items())
    rest = [{name: value for name, value in vars(one).items() if name != "kept"} for one in (before, after)]
    assert rest[0] == rest[1]


def test_the_record_of_an_earlier_pickle_is_read():
    model = cut_stack()
    record = record_of(model)
    setattr(model, RECORD, record)  # as version 0.1 left it
    assert record_of(model) is record
    demp.cut(model, {"1": [0]}, example_inputs=(torch.zeros(2, 6),), exact=False)
    assert record_of(model).kept["0.weight", 0].tolist() == [3, 4, 5, 6, 7]


def copied_at_every_step(kind: type[nn.Module], copies: bool, **options) -> nn.Module:
    """A model after a run in which, if wanted, it is copied in every step and the copies run in training mode."""
    model = build(kind)
    kill(model.norm1, [1, 4])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(IMAGE),), total_steps=12, period=4, window_steps=2,
        peak_noise_std=0.01, **options,
    )  # fmt: skip
    for step in range(12):
        train(model, optimizer, IMAGE, range(step, step + 1))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps((model, pruner)))[0]) if copies else ():
            x = examples(IMAGE, seed=step)
            assert torch.equal(other.eval()(x), model.eval()(x))
            assert hooks_on(other) == 0
            other.train()(10 + x)
            model.train()
    pruner.finish()
    assert pruner.history[0].removed >= 2
    return model


@pytest.mark.parametrize("kind", [PlainNet, ResidualNet])
@pytest.mark.parametrize("judged", ["window", "batches"])
def test_a_model_is_copied_and_pickled_at_any_moment_and_copies_tell_the_pruner_nothing(kind, judged):
    options = {"batches": [examples(IMAGE, seed=9)]} if judged == "batches" else {}
    alone, watched = (copied_at_every_step(kind, copies, **options).state_dict() for copies in (False, True))
    assert all(torch.equal(tensor, watched[name]) for name, tensor in alone.items())


def test_a_watched_monitor_and_heads_outside_stay_with_the_original():
    model = build(PlainNet)
    monitor = demp.NeuronMonitor(model, example_inputs=(examples(IMAGE),))
    other = pickle.loads(pickle.dumps(model))
    other.train()(examples(IMAGE))
    with pytest.raises(UsageError, match="has not run"):
        monitor.snapshot()
    model.train()(examples(IMAGE))
    assert monitor.snapshot().batches == 1
    assert hooks_on(other) == 0


def test_a_copy_of_a_pruner_is_its_state_and_prunes_nothing():
    model = build(PlainNet)
    kill(model.norm1, [1, 4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(examples(IMAGE),), total_steps=8, period=4, batches=lambda: [examples(IMAGE)]
    )
    train(model, optimizer, IMAGE, range(5))
    for other in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
        assert "step 5 of 8" in repr(other) and other.summary() == pruner.summary() and not other.at_work
        assert len(other.history) == 1 and other.metrics() == pruner.metrics()
        for name, given in (("before_step", ()), ("after_step", ()), ("finish", ()), ("attach_to", (optimizer,))):
            with pytest.raises(UsageError, match="a copy of a pruner, which prunes nothing"):
                getattr(other, name)(*given)
        again = build(PlainNet)
        resumed = demp.DemP(
            again, torch.optim.SGD(again.parameters(), lr=0.01), example_inputs=(examples(IMAGE),), total_steps=8,
            period=4, batches=[examples(IMAGE)], resume=True,
        )  # fmt: skip
        resumed.load_state_dict(other.state_dict())
        assert torch.equal(resumed.state.removed, pruner.state.removed) and resumed.step == 5


def told(pruner: Any, queue: Any) -> None:
    """What another process finds in the pruner that was sent to it."""
    state = pruner.state_dict()
    queue.put((repr(pruner), state["step"], int(state["gone"].sum()), [r.removed for r in pruner.history]))


def test_a_pruner_is_sent_to_a_process_that_starts():
    """Its state is made for the occasion, and torch shares memory that must outlive the start."""
    model, starting = build(PlainNet), multiprocessing.get_context("spawn")
    kill(model.norm1, [1, 4])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = demp.DemP(model, optimizer, example_inputs=(examples(IMAGE),), total_steps=8, period=4)
    for steps in (0, 3, 2, 3):  # at the start, in a window, behind a cut, at the end
        train(model, optimizer, IMAGE, range(pruner.step, pruner.step + steps))
        if pruner.step == 8:
            pruner.finish()
        queue = starting.Queue()
        process = starting.Process(target=told, args=(pruner, queue))
        process.start()
        text, step, gone, removed = queue.get(timeout=120)
        process.join()
        assert f"step {pruner.step} of 8" in text and step == pruner.step
        assert gone == int(pruner.state.removed.sum()) and removed == [r.removed for r in pruner.history]
