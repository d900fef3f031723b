import errno
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import forks
import runs
from demp.errors import UsageError
from demp.train import Observer, TrainConfig, checkpoint, resume, train
from demp.train.checkpoint import CheckpointError
from demp.train.runfolder import RunFolder, RunFolderError, read_lines
from thinning import covering, mostly_slow

METHODS = ("dense", "demp", "budget")
"""The last is DemP with a budget."""
STEPS = 36
TIMES = ("seconds", "surgery_seconds", "train_seconds", "step_ms_at_end", "images_per_s_at_end")
START = "import sys; from demp.train import *; train(TrainConfig.from_toml(sys.argv[1]))"


def config(method, out, **changes):
    """A small residual network that loses neurons at several cuts; nothing divides anything evenly."""
    pruning = {"name": method}
    if method == "budget":
        pruning = {"name": "demp", "options": {"budget": "flops=0.4"}}
    if method == "demp":
        pruning["options"] = {"peak_strength": 0.5, "peak_noise_std": 2e-2, "period": 5}
    values = {
        "model": {"name": "runs:small_network"},
        "data": {
            "name": "digits",
            "probe_size": 64,
            "augment": {"crop": "pad", "padding": 1, "flip": True, "mixup_alpha": 0.2},
        },
        "optimizer": {"name": "adamw", "lr": 0.1},
        "schedule": {"name": "one-cycle"},
        "method": pruning,
        "steps": STEPS,
        "batch_size": 32,
        "device": "cpu",
        "log_every_steps": 4,
        "eval_every_steps": 11,
        "checkpoint_every_steps": 7,
        "out": str(out),
    }
    return TrainConfig.from_dict(values).merged(changes)


class Crash(Observer):
    """Ends the process's part of a run without any clean-up, right after a step."""

    def __init__(self, at):
        self.at = at

    def step(self, run, seconds):
        if run.step == self.at:
            raise ZeroDivisionError


def timeless(records):
    return [{k: v for k, v in r.items() if not k.startswith("time/") and k not in TIMES} for r in records]


def assert_same_run(first, second):
    """Files and weights of two finished runs are equal, but for the time they took."""
    for name in ("metrics.jsonl", "cuts.jsonl"):
        assert timeless(read_lines(first / name)) == timeless(read_lines(second / name))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    assert timeless([summaries[0]]) == timeless([summaries[1]])
    states = [checkpoint.load(checkpoint.newest(folder / "checkpoints")) for folder in (first, second)]
    assert states[0]["step"] == states[1]["step"] == STEPS
    for part in ("model", "optimizer"):
        assert_equal(states[0][part], states[1][part])


def assert_equal(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    else:
        assert first == second


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """One uninterrupted run per method."""
    folder = tmp_path_factory.mktemp("straight")
    for method in METHODS:
        train(config(method, folder / method))
    return folder


def test_the_demp_run_of_these_tests_does_shrink(straight):
    for method in ("demp", "budget"):
        cuts = read_lines(straight / method / "cuts.jsonl")
        assert sum(cut["removed"] > 0 for cut in cuts) >= 2


@pytest.mark.parametrize(("method", "at"), covering(METHODS, (3, 20, 36)))
def test_a_crashed_run_resumes_to_the_bit(straight, tmp_path, method, at):
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(config(method, out), observers=[Crash(at)])
    resume(out, trust=True)
    assert_same_run(straight / method, out)


def test_a_run_with_a_validation_share_resumes_to_the_bit_and_with_no_other_share(tmp_path):
    share = {"data": {"validation": 0.2}}
    train(config("demp", tmp_path / "whole", **share))
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(config("demp", out, **share), observers=[Crash(20)])
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace("validation = 0.2", "validation = 0.3"))
    with pytest.raises(UsageError, match=r"data\.validation was 0\.2 and is 0\.3"):
        resume(out, trust=True)
    (out / "config.toml").write_text(text)
    resume(out, trust=True)
    assert_same_run(tmp_path / "whole", out)


def test_a_run_that_crashes_again_and_again(straight, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(config("demp", out), observers=[Crash(9)])
    for at in (16, 30):
        with pytest.raises(ZeroDivisionError):
            resume(out, observers=[Crash(at)], trust=True)
    resume(out, trust=True)
    assert_same_run(straight / "demp", out)


@pytest.mark.parametrize("method", mostly_slow(METHODS, quick=("budget",)))
def test_kill_9_at_a_random_moment(straight, tmp_path, method):
    out, file = tmp_path / "run", tmp_path / "config.toml"
    file.write_text(config(method, out).to_toml())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(Path(runs.__file__).parent),
    }
    process = forks.Popen([sys.executable, "-c", START, str(file)], env=environment)
    lines = random.randrange(1, 7)
    while process.poll() is None and not _has_lines(out / "metrics.jsonl", lines):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    resume(out, trust=True)
    assert_same_run(straight / method, out)


def _has_lines(path, count):
    return path.exists() and path.read_bytes().count(b"\n") >= count


def test_a_kill_within_the_last_step_leaves_no_double_lines(straight, tmp_path):
    """Killed after the final cut was recorded, before the summary: the cut is made again."""

    class CrashAtEnd(Observer):
        def cut(self, record):
            if record["step"] == STEPS:
                raise ZeroDivisionError

    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(config("demp", out), observers=[CrashAtEnd()])
    resume(out, trust=True)
    assert_same_run(straight / "demp", out)


def test_streamed_data_resumes_to_the_bit(tmp_path):
    """DataLoader workers read ahead; what they read ahead must not matter."""
    import datasets
    from PIL import Image

    rows = {
        "image": [Image.effect_noise((12, 10), 60 + i).convert("RGB") for i in range(30)],
        "label": [i % 3 for i in range(30)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict(rows, features=features)
    for split in ("train", "test"):
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")
    data = {
        "name": str(tmp_path / "set"),
        "memory_mb": 0,
        "image_size": 8,
        "augment": {"crop": "resized", "mixup_alpha": 0.0},
    }
    train(config("dense", tmp_path / "straight", data=data))
    with pytest.raises(ZeroDivisionError):
        train(config("dense", tmp_path / "run", data=data), observers=[Crash(17)])
    resume(tmp_path / "run", trust=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


# Checkpoints ---------------------------------------------------------------------------------------


def test_the_last_two_are_kept_and_loading_runs_no_code(tmp_path):
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {"value": torch.ones(2), "text": "x", "none": None})
    assert [p.name for p in checkpoint.listed(tmp_path)] == [
        "step-000000010.pt",
        "step-000000015.pt",
    ]
    state = checkpoint.load(checkpoint.newest(tmp_path))
    assert (state["step"], state["text"], state["none"]) == (15, "x", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in checkpoint.listed(tmp_path)]


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["truncated", "altered", "code"])
def test_a_damaged_checkpoint(tmp_path, damage):
    path = checkpoint.save(tmp_path, 5, {"value": torch.ones(2)})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "altered":
        path.write_bytes(b"something else")
    else:
        torch.save({"format": 1, "value": random.Random()}, path)
    with pytest.raises(CheckpointError, match=f"the checkpoint {path} is damaged"):
        checkpoint.load(path)


def test_a_file_of_another_format(tmp_path):
    torch.save({"format": 99}, tmp_path / "step-000000001.pt")
    with pytest.raises(UsageError, match="not a checkpoint of this version"):
        checkpoint.load(tmp_path / "step-000000001.pt")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from demp.train import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"value": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, 2, {"value": torch.ones(1_000_000)})
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_leaves_the_old_checkpoint(tmp_path):
    """The kernel's own refusal, through a limit on the size of files."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints")]
    done = forks.run(command, capture_output=True, text=True, check=True)
    assert "could not write the checkpoint" in done.stdout
    assert "File too large; the one before, step-000000001.pt, is intact" in done.stdout
    assert f"demp resume {tmp_path}" in done.stdout
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.pt"]
    assert checkpoint.load(checkpoint.newest(tmp_path / "checkpoints"))["step"] == 1


def test_a_full_disk_stops_the_run_and_it_resumes_later(straight, tmp_path, monkeypatch):
    out, sync = tmp_path / "run", os.fsync

    def full(handle):
        if len(checkpoint.listed(out / "checkpoints")) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((CheckpointError, RunFolderError, OSError), match="No space left"):
            train(config("demp", out))
    assert [p.name for p in checkpoint.listed(out / "checkpoints")] == [
        "step-000000007.pt",
        "step-000000014.pt",
    ]
    resume(out, trust=True)
    assert_same_run(straight / "demp", out)


# The run folder ------------------------------------------------------------------------------------


def test_rewinding_drops_lines_and_torn_ends(tmp_path):
    folder = RunFolder.create(tmp_path / "run", config("dense", tmp_path / "run"))
    for step in range(5):
        folder.log({"step": step})
    lines = folder.lines()
    assert lines == {"metrics.jsonl": 5, "cuts.jsonl": 0}
    folder.log({"step": 5})
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 6, "tor')
    folder.rewind(lines)
    assert [r["step"] for r in read_lines(folder.metrics_file)] == [0, 1, 2, 3, 4]


def test_a_line_that_cannot_be_written_is_one_sentence(tmp_path):
    folder = RunFolder(tmp_path / "gone")
    with pytest.raises(RunFolderError, match=r"could not write .*metrics.jsonl: No such file"):
        folder.log({"step": 1})
