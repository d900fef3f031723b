"""kill -9 at a hundred random moments of a run, and at every line that writes: it goes on to the bit, or says why."""

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import demp
from demp.errors import UsageError
from demp.train import TrainConfig, checkpoint, resume, train
from demp.train.runfolder import RunFolder, read_lines
from kills import killed_at_every_line
from test_files import X, names, net, value_of

pytestmark = pytest.mark.slow
KILLS, STEPS = 100, 120
SERVER = """
import os, sys, traceback
import torch._dynamo
from demp.train import TrainConfig, resume, train
from demp.train.runfolder import RunFolder

out, config = sys.argv[1:]
for _ in sys.stdin:  # each line asks for a process that begins the run, or goes on with it
    child = os.fork()
    if child == 0:
        try:
            if RunFolder(out).config_file.exists():
                resume(out)
            else:
                train(TrainConfig.from_toml(config))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def config(out) -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "model": {"name": "mlp", "options": {"hidden": [40, 20]}},
            "data": {"name": "digits", "probe_size": 64},
            "method": {"name": "demp", "options": {"peak_strength": 0.2, "peak_noise_std": 1e-3, "period": 7}},
            "optimizer": {"name": "adamw", "lr": 0.03},
            "steps": STEPS, "batch_size": 32, "device": "cpu", "log_every_steps": 2, "checkpoint_every_steps": 3,
            "out": str(out),
        }
    )  # fmt: skip


def outcome(folder) -> tuple:
    """Weights, and the lines without times."""
    state = checkpoint.load(checkpoint.newest(folder / "checkpoints"))
    lines = [
        {key: value for key, value in line.items() if not key.startswith("time/") and not key.endswith("seconds")}
        for name in ("metrics.jsonl", "cuts.jsonl")
        for line in read_lines(folder / name)
    ]
    return state["model"], lines


@pytest.mark.timeout(1800)
def test_a_hundred_kills_at_random_moments(tmp_path):
    straight, out = tmp_path / "straight", tmp_path / "run"
    torch.set_num_threads(1)
    train(config(straight))  # the first imports what all need
    shutil.rmtree(straight)
    began = time.monotonic()
    train(config(straight))
    longest, draw, kills = time.monotonic() - began, random.Random(0), 0
    expected = outcome(straight)
    file = tmp_path / "config.toml"
    file.write_text(config(out).to_toml())
    with serving(out, file) as server:
        while kills < KILLS:
            killed = run_until(server, draw.uniform(0.0, longest))
            kills += killed
            if not killed or RunFolder(out).summary_file.exists():  # the run had ended, if not its process
                judge(out, expected)
        while not RunFolder(out).summary_file.exists():
            run_until(server, None)
        judge(out, expected)


@contextmanager
def serving(out, file) -> Iterator[subprocess.Popen]:
    """A process that has imported what a run needs, and makes one for every line that it reads."""
    command = [sys.executable, "-c", SERVER, str(out), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:
        yield server
        server.stdin.close()


def run_until(server: subprocess.Popen, seconds: float | None) -> bool:
    """Begin the run or go on with it, for so many seconds at most; was its process killed?"""
    server.stdin.write("\n")
    process = int(server.stdout.readline())
    late = not select.select([server.stdout], [], [], seconds)[0]
    if late:
        os.kill(process, signal.SIGKILL)
    code = int(server.stdout.readline())
    assert code == 0 or (late and code == -signal.SIGKILL)
    return code != 0


def judge(out, expected) -> None:
    """A run that has ended is the run that nobody interrupted; the next begins anew."""
    weights, lines = outcome(out)
    expected_weights, expected_lines = expected
    assert lines == expected_lines
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
    shutil.rmtree(out)


def test_a_save_killed_at_every_line(tmp_path):
    path, found = demp.save(net(1.0), tmp_path / "model", example_inputs=X), []
    for _ in killed_at_every_line(
        ("files/replacement.py", "artifact.py"), lambda: demp.save(net(2.0), path, example_inputs=X)
    ):
        found.append(value_of(path))
        if found[-1] == 2.0:
            demp.save(net(1.0), path, example_inputs=X)
            assert names(tmp_path) == ["model"]
    assert set(found) == {1.0, 2.0} and len(found) > 100
    assert value_of(path) == 2.0 and names(tmp_path) == ["model"]


def test_a_checkpoint_killed_at_every_line(tmp_path):
    payload = {"value": torch.ones(20)}
    for step in (1, 2):
        checkpoint.save(tmp_path, step, payload)
    for _ in killed_at_every_line(
        ("files/replacement.py", "train/checkpoint.py"), lambda: checkpoint.save(tmp_path, 3, payload)
    ):
        steps = [checkpoint.load(path)["step"] for path in checkpoint.listed(tmp_path)]
        assert steps in ([1, 2], [1, 2, 3], [2, 3])
    assert [checkpoint.load(path)["step"] for path in checkpoint.listed(tmp_path)] == [2, 3]


def test_the_start_of_a_run_killed_at_every_line(tmp_path):
    """It can be started again, or resumed; never neither."""
    folder, wanted = tmp_path / "run", config(tmp_path / "run")

    def start() -> None:
        with RunFolder(folder).held():
            RunFolder.create(folder, wanted)

    started = 0
    for _ in killed_at_every_line(("files/replacement.py", "train/runfolder.py"), start):
        if RunFolder(folder).config_file.is_file():
            assert RunFolder.open(folder).config() == wanted
            started += 1
            shutil.rmtree(folder)
        elif folder.is_dir() and any(folder.iterdir()):
            with pytest.raises(UsageError, match="was ended before its first step"):
                resume(folder)
    assert started > 0 and RunFolder.open(folder).config() == wanted
