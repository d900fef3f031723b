import io
import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from demp.errors import UsageError
from demp.train import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    Observer,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TrainingDiverged,
    train,
)
from demp.train.optim import SGDW, build_optimizer, lr_at
from demp.train.progress import progress
from demp.train.run import Run
from demp.train.runfolder import read_lines


def config(**changes):
    base = TrainConfig(
        model=ModelConfig(name="mlp", options={"hidden": [24, 12]}),
        data=DataConfig(name="digits", probe_size=64, probe_batches=1),
        optimizer=OptimizerConfig(name="adamw", lr=0.01),
        method=MethodConfig(name="dense"),
        steps=12,
        batch_size=32,
        device="cpu",
        log_every_steps=5,
    )
    return base.merged(changes)


# Learning rates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "golden"),
    [
        (ScheduleConfig(), {0: 1.0, 99: 1.0}),
        (
            ScheduleConfig(name="step", factor=0.2, milestones=(77 / 250, 154 / 250, 231 / 250)),
            {0: 1.0, 30: 1.0, 31: 0.2, 61: 0.2, 62: 0.04, 92: 0.04, 93: 0.008},
        ),
        (
            ScheduleConfig(name="step", milestones=(0.3, 0.7, 0.9), warmup=0.05, warmup_lr=0.0),
            {0: 0.0, 1: 0.2, 4: 0.8, 5: 1.0, 29: 1.0, 30: 0.1, 70: 0.01, 90: 0.001},
        ),
        (ScheduleConfig(name="cosine"), {0: 1.0, 25: (2 + math.sqrt(2)) / 4, 50: 0.5, 100: 0.0}),
        (
            ScheduleConfig(name="cosine", warmup=0.1, warmup_lr=0.033),
            {0: 0.033, 5: 0.5165, 10: 1.0, 55: 0.5, 100: 0.0},
        ),
        (
            ScheduleConfig(name="one-cycle"),
            {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.500002, 100: 4e-6},
        ),
    ],
)
def test_learning_rates_against_hand_values(schedule, golden):
    found = {step: lr_at(schedule, 1.0, step, 100) for step in golden}
    assert found == pytest.approx(golden, abs=1e-9)


# Optimizers ----------------------------------------------------------------------------------------


def test_sgdw_step_by_step_against_its_formula():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5))
    optimizer = SGDW([weight], lr=0.1, momentum=0.9, weight_decay=0.05)
    expected, buffer = weight.detach().clone(), torch.zeros(5)
    for _ in range(4):
        gradient = torch.randn(5)
        weight.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + gradient
        expected = expected - 0.1 * (buffer + 0.05 * expected)
        assert_close(weight.detach(), expected)
    weight.grad = None
    optimizer.step()
    assert_close(weight.detach(), expected)


def test_sgdw_calls_hooks_once_and_survives_a_reload():
    weight = nn.Parameter(torch.ones(3))
    torch.optim.SGD([weight], lr=0.1)  # its class being patched must not double the hooks
    optimizer = SGDW([weight], lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    weight.grad = torch.ones(3)
    assert optimizer.step(lambda: 2.5) == 2.5
    assert calls == [1]
    again = SGDW([weight], lr=0.5)
    again.load_state_dict(optimizer.state_dict())
    assert_close(again.state[weight]["momentum_buffer"], torch.ones(3))


@pytest.mark.parametrize(
    ("name", "kind", "coupled"),
    [
        ("adam", torch.optim.Adam, True),
        ("adamw", torch.optim.AdamW, False),
        ("sgdm", torch.optim.SGD, True),
        ("sgdw", SGDW, False),
    ],
)
def test_where_the_decay_goes(name, kind, coupled):
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=0.1, weight_decay=0.5))
    assert type(optimizer) is kind
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    state = optimizer.state[model.weight]
    memory = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
    assert bool(memory.abs().sum() > 0) is coupled
    assert (model.weight < 1).all()


# The loop ------------------------------------------------------------------------------------------


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def test_a_dense_run_learns_and_says_what_it_did(tmp_path):
    out = tmp_path / "run"
    result = train(config(steps=60, out=str(out), eval_every_steps=25))
    assert result.pruner is None
    assert result.summary["eval/top1"] > 0.7
    assert result.summary["parameters"] == result.summary["parameters_dense"]
    assert result.summary["weight_sparsity"] == result.summary["neuron_sparsity"] == 0
    assert result.summary["neurons"] == 36
    assert json.loads((out / "summary.json").read_text()) == result.summary
    assert TrainConfig.from_toml(out / "config.toml") == config(steps=60, out=str(out), eval_every_steps=25)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert (environment["seed"], environment["device"]) == (0, "cpu")
    records = read_lines(out / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == list(range(5, 61, 5))
    assert [r["step"] for r in records if "eval/top1" in r] == [25, 50, 60]
    assert records[0]["train/loss"] > records[-2]["train/loss"]
    assert (out / "cuts.jsonl").read_text() == ""
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["step-000000060.pt"]
    assert {p.name for p in (out / "model").iterdir()} == {"model.safetensors", "architecture.json"}


def test_a_run_with_a_validation_share_says_so_wherever_it_reports_accuracy(tmp_path, capsys):
    out = tmp_path / "run"
    changes = {"data": {"validation": 0.2}, "eval_every_steps": 6, "out": str(out)}
    result = train(config(**changes), observers=[progress()])
    assert result.summary["split"] == "validation"
    assert "validation accuracy" in capsys.readouterr().out
    records = [r for r in read_lines(out / "metrics.jsonl") if "eval/top1" in r]
    assert [(r["step"], r["split"]) for r in records] == [(6, "validation"), (12, "validation")]
    assert train(config()).summary["split"] == "test"


def test_a_demp_run_shrinks_and_records_every_check(tmp_path):
    out = tmp_path / "run"
    pruning = {"name": "demp", "options": {"peak_noise_std": 0.05, "period": 10}}
    result = train(config(steps=60, out=str(out), method=pruning, optimizer={"lr": 0.03}))
    cuts = read_lines(out / "cuts.jsonl")
    assert [cut["step"] for cut in cuts] == [10, 20, 30, 40, 50, 60]
    assert [cut["neurons_after"] for cut in cuts] == [h.neurons_after for h in result.pruner.history]
    summary = result.summary
    assert summary["neurons"] == cuts[-1]["neurons_after"] < summary["neurons_dense"] == 36
    assert summary["parameters"] == sum(p.numel() for p in result.model.parameters())
    assert summary["parameters"] < summary["parameters_dense"]
    spent = 3 * 32 * summary["flops_dense"] * 60 + 64 * 6 * summary["flops_dense"]
    assert 0 < summary["train_flops"] < spent
    records = [r for r in read_lines(out / "metrics.jsonl") if "train/loss" in r]
    assert {"demp/strength", "demp/noise_std", "prune/neurons_alive"} <= records[0].keys()


def test_equal_seeds_give_equal_runs_and_others_do_not():
    first, again = train(config()), train(config())
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(train(config(seed=1))))


def test_accumulated_parts_add_up_to_the_whole_batch():
    whole = Run(config())
    parts = Run(config(accumulate=4))
    for run in (whole, parts):
        run._backward(*next(run.data.train_batches(0, 1)))
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert_close(p.grad, q.grad)
    assert whole.losses.values == pytest.approx(parts.losses.values)


def test_label_smoothing_and_clipping():
    plain, smooth = Run(config()), Run(config(label_smoothing=0.2))
    x, y = next(plain.data.train_batches(0, 1))
    for run in (plain, smooth):
        run._backward(x, y)
    logits = plain.model(x)
    expected = nn.functional.cross_entropy(logits, y, label_smoothing=0.2).item()
    assert smooth.losses.values[0] == pytest.approx(expected)
    clipped = Run(config(optimizer={"clip_norm": 1e-3}))
    clipped.train_step(x, y)
    squares = sum(p.grad.square().sum() for p in clipped.model.parameters())
    assert float(squares) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(precision):
    result = train(config(steps=40, precision=precision))
    assert result.summary["eval/top1"] > 0.7
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_a_step_that_overflows_is_skipped_by_the_pruner_too(monkeypatch):
    run = Run(config(precision="fp16", method={"name": "demp"}))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    before = weights(run)
    run.train_step(*next(run.data.train_batches(0, 1)))
    assert torch.equal(weights(run), before)
    assert (run.step, run.pruner.step) == (1, 0)


def test_a_network_with_dropout_repeats_itself():
    changes = {
        "model": {"name": "vgg16", "width": 0.02, "options": {"dropout": 0.3}},
        "steps": 2,
        "data": {"image_size": 32},
    }
    first, again = train(config(**changes)), train(config(**changes))
    assert torch.equal(weights(first), weights(again))


def test_observers_see_every_event_in_order():
    class Diary(Observer):
        def __init__(self):
            self.seen = []

        def start(self, run):
            self.seen.append(f"start {run.total_steps}")

        def step(self, run, seconds):
            self.seen.append(run.step)

        def log(self, record):
            self.seen.append("eval" if "eval/top1" in record else "log")

        def cut(self, record):
            self.seen.append("cut")

        def end(self, summary):
            self.seen.append("end")

        def close(self):
            self.seen.append("close")

    diary = Diary()
    pruning = {"name": "demp", "options": {"period": 3}}
    train(config(steps=4, log_every_steps=2, method=pruning), observers=[diary])
    assert diary.seen == [
        "start 4", 1, 2, "log", 3, "cut", 4, "log", "cut", "eval", "end", "close",
    ]  # fmt: skip


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


class Drawn(Observer):
    """A live line is drawn eight times a second; here at every step, however fast they are."""

    def __init__(self, view):
        self.live = getattr(view, "live", None)

    def step(self, run, seconds):
        if self.live is not None:
            self.live.refresh()


def test_a_terminal_gets_a_live_line_and_a_pipe_plain_ones():
    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        view = progress("demp", file=stream)
        train(config(method={"name": "demp"}), observers=[view, Drawn(view)])
    for word in ("loss", "strength", "noise", "neurons", "parameters", "ms/step", "12/12"):
        assert word in screen.getvalue()
    assert "\x1b" in screen.getvalue() and "\x1b" not in pipe.getvalue()
    assert "test accuracy" in screen.getvalue()
    lines = pipe.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "step 0 of 12", "step 5 of 12", "step 10 of 12", "step 12 of 12", "step 12 of 12",
    ]  # fmt: skip


def test_training_flushes_denormal_numbers():
    torch.set_flush_denormal(False)
    tiny = torch.tensor([100_000], dtype=torch.int32).view(torch.float32)
    assert (tiny * 1.0).view(torch.int32).item() == 100_000
    train(config(steps=1))
    assert (tiny * 1.0).view(torch.int32).item() == 0


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    out = tmp_path / "run"
    pruning = {"name": "demp", "options": {"peak_noise_std": 1e25, "schedule": "warm-up"}}
    wild = config(steps=30, out=str(out), method=pruning, checkpoint_every_steps=1)
    with pytest.raises(TrainingDiverged) as caught:
        train(wild)
    text = str(caught.value)
    last = sorted((out / "checkpoints").iterdir())[-1]
    assert f"the last good checkpoint is {last}" in text
    assert "lower the learning rate, the strength or the noise" in text
    assert not (out / "summary.json").exists()
    state = torch.load(last, weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_the_first_bad_loss_names_its_step():
    run = Run(config())
    x, y = next(run.data.train_batches(0, 1))
    run.train_step(x, y)
    with pytest.raises(TrainingDiverged, match="the loss became nan at step 2"):
        run.train_step(x * float("nan"), y)


def test_a_device_that_is_not_there():
    with pytest.raises(UsageError, match="'cuda:99' cannot be used here"):
        train(config(device="cuda:99"))


def test_outputs_do_not_depend_on_the_memory_layout():
    first, again = train(config()), train(config(channels_last=False))
    assert_close(weights(first), weights(again))
