"""The reference trainer in several processes: the same run, shared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_jobs

from demp.cli import main
from demp.train import checkpoint
from demp.train.data import Data
from demp.train.parts import AugmentConfig, DataConfig
from demp.train.runfolder import read_lines

TIMES = ("seconds", "surgery_seconds", "time/seconds", "time/step_ms", "time/images_per_s")


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def widths(folder):
    return [
        (line["step"], {name: layer["hash"] for name, layer in line["layers"].items()}, line["judged"]["examples"])
        for line in read_lines(folder / "cuts.jsonl")
    ]


@pytest.fixture(scope="module")
def folders(fleet, tmp_path_factory):
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    train_jobs.trained(str(folder / "one"))
    fleet(train_jobs.trained, str(folder / "two"))
    return folder


def test_two_processes_make_the_run_of_one(folders):
    one, two = folders / "one", folders / "two"
    assert widths(one) == widths(two)
    assert sum(line["removed"] for line in read_lines(one / "cuts.jsonl")) > 30
    for mine, theirs in zip(read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True):
        assert mine.keys() == theirs.keys()
        for name in {"train/loss", "eval/loss"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3)
        for name in {name for name in mine if name.startswith("dead/")}:
            assert mine[name] == theirs[name]
    assert max(line.get("dead/neurons", 0) for line in read_lines(one / "metrics.jsonl")) > 30
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    for name in ("eval/top1", "neurons", "parameters", "flops", "train_flops", "config_hash"):
        assert summaries[0][name] == summaries[1][name]
    environment = json.loads((two / "environment.json").read_text())
    assert environment["processes"] == 2


def test_a_shared_run_is_resumed_to_the_bit(fleet, folders, tmp_path):
    run = shutil.copytree(folders / "two", tmp_path / "run")
    (run / "summary.json").unlink()
    checkpoint.newest(run / "checkpoints").unlink()
    fleet(train_jobs.resumed_run, str(run))
    assert (run / "model/model.safetensors").read_bytes() == (folders / "two/model/model.safetensors").read_bytes()
    for name in ("metrics.jsonl", "cuts.jsonl"):
        assert without_times(read_lines(run / name)) == without_times(read_lines(folders / "two" / name))


def test_parts_of_a_batch_that_cannot_be_shared_are_refused(fleet, tmp_path):
    for kind, text in fleet(train_jobs.refused_batch):
        assert kind == "UsageError"
        assert "batch_size is 33, which 2 processes cannot share equally; set --batch-size to a multiple of 2" in text


def test_one_rank_that_cannot_begin_stops_all(fleet, folders):
    first, second = fleet(train_jobs.refused_run, str(folders / "two"))
    assert first[0] == "UsageError" and "already holds a run" in first[1]
    assert second[0] == "ElsewhereError" and "rank 0 failed, so all ranks stopped there" in second[1]


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_shares_of_a_batch_do_not_depend_on_the_number_of_processes(mixup):
    augment = AugmentConfig(crop="pad", padding=1, flip=True, mixup_alpha=mixup)
    config = DataConfig(name="digits", probe_size=20, probe_batches=2, augment=augment)
    options = {"batch_size": 12, "seed": 4, "device": "cpu"}
    whole = Data(config, **options)
    shares = [Data(config, **options, share=(rank, 3)) for rank in range(3)]
    for step, (x, y) in enumerate(whole.train_batches(5, 8), 5):
        for rank, share in enumerate(shares):
            mine, labels = next(share.train_batches(step, step + 1))
            assert torch.equal(mine, x[rank::3]) and torch.equal(labels, y[rank::3])
    together = [torch.cat([batch for batch, _ in share.labelled_batches(7)]) for share in shares]
    assert [len(part) for part in together] == [14, 14, 12]
    for rank, share in enumerate(shares):
        for (mine, _), (all_rows, _) in zip(share.labelled_batches(7), whole.labelled_batches(7), strict=True):
            assert torch.equal(mine, all_rows[rank::3])
    tested = sum(len(labels) for share in shares for _, labels in share.test.batches(50))
    assert tested == len(whole.test)


def test_several_processes_need_a_named_run_folder(monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--model", "mlp", "--steps", "2", "--device", "cpu"]) == 2
    assert "name it with --out FOLDER" in capsys.readouterr().err
    assert main(["train", "--model", "mlp", "--steps", "2", "--device", "meta:1", "--out", "never"]) == 2
    assert "each process needs a GPU of its own; set --device meta" in capsys.readouterr().err


# torchrun itself ----------------------------------------------------------------------------------------

STEPS = 240


def torchrun(out, *options):
    """``demp train`` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    train = ["-m", "demp.cli", "train", "--model", "mlp", "--batch-size", "32", "--device", "cpu", "--noise", "0.02"]
    sets = ["checkpoint_every_steps=20", "log_every_steps=10", "eval_every_steps=80"]
    more = ["--steps", str(STEPS), "--out", str(out), *(word for pair in sets for word in ("--set", pair))]
    return subprocess.Popen(
        [*command, *train, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def process_of(rank):
    """The process that torchrun started for a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        if b"demp.cli" in words and b"torch.distributed.run" not in words and b"RANK=%d" % rank in environment:
            yield int(folder.name), environment


def lines_of(folder):
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_the_example_prints_the_same_from_one_process_and_from_two():
    example = str(Path(__file__).parents[2] / "examples" / "many_processes.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = [
        subprocess.run(
            [sys.executable, *words, example], capture_output=True, text=True, timeout=240, check=True
        ).stdout
        for words in ([], launcher)
    ]
    assert said[0] == said[1]
    assert "of 256 neurons left" in said[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    output, _ = (process := torchrun(folder)).communicate(timeout=240)
    assert process.returncode == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_started_again_and_the_run_goes_on(whole, tmp_path, rank):
    killed = tmp_path / "killed"
    process = torchrun(killed, "--max-restarts", "1")
    try:
        until = time.monotonic() + 240
        while lines_of(killed) < 6:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        victims = [pid for pid, env in process_of(rank) if b"TORCHELASTIC_RESTART_COUNT=0" in env]
        assert len(victims) == 1
        os.kill(victims[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Signal 9 (SIGKILL)" in output or "exitcode: -9" in output
    assert (killed / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    for name in ("metrics.jsonl", "cuts.jsonl"):
        assert without_times(read_lines(killed / name)) == without_times(read_lines(whole / name))
