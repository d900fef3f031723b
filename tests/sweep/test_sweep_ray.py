"""Sweeps on a Ray cluster of two workers on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweepjobs import CONFIG, held, job, numbers

from demp.errors import DempError, UsageError
from demp.experiments.sweep import Store, Sweep, training
from demp.experiments.sweep.ray_workers import JobRunner, announced
from demp.train import checkpoint

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
COORDINATOR = """
import json, sys
from demp.experiments.sweep import Job, Sweep
asked = json.loads(sys.stdin.read())
sweep = Sweep(asked["path"], [Job.from_dict(one) for one in asked["jobs"]])
outcome = sweep.go(on="ray", say=lambda text: print(text, file=sys.stderr, flush=True))
print(outcome.left)
"""
SAME = ("eval/loss", "parameters", "train_flops", "cut_steps")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A cluster of two nodes with one processor each."""
    log = (tmp_path_factory.mktemp("ray") / "log").open("w")
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # it would starve beside others
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True, "env": quiet}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as process:
        found = process.stdout.readline().strip()
        assert found, Path(log.name).read_text()
        yield found
        process.communicate(timeout=120)
    log.close()


def coordinator(path, jobs, address):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = {**os.environ, "RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([sys.executable, "-c", COORDINATOR], env=env, **pipes)
    process.stdin.write(json.dumps({"path": str(path), "jobs": [one.to_dict() for one in jobs]}))
    process.stdin.close()
    process.stdin = None
    return process


def wait(condition, process):
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow  # a cluster, and a minute
def test_two_workers_lose_one_and_are_stopped_and_end_as_if_nothing_had_been(tmp_path, address):
    straight = [training(f"s{seed}", CONFIG.merged({"seed": seed}), labels={}) for seed in (0, 1)]
    expected = {record["name"]: record for record in Sweep(tmp_path / "straight", straight).go().records}
    gate, runs = tmp_path / "gate", tmp_path / "s" / "runs"
    reached = [runs / f"s{seed}.reached" for seed in (0, 1)]
    jobs = [*held(gate, 0, 1), job("broken", "failing"), *numbers(3)]
    first = coordinator(tmp_path / "s", jobs, address)
    wait(lambda: all(file.is_file() and file.read_text() for file in reached), first)
    workers = [int(file.read_text()) for file in reached]
    assert len(set(workers)) == 2
    reached[0].unlink()
    os.kill(workers[0], signal.SIGKILL)
    wait(lambda: reached[0].is_file() and reached[0].read_text(), first)  # begun again, on another worker
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=200)
    assert first.returncode != 0 and "was lost with its Ray worker" in errors and "it is begun again" in errors
    assert Store(tmp_path / "s").records() == []
    assert [checkpoint.newest(runs / f"s{seed}" / "checkpoints").name for seed in (0, 1)] == ["step-000000007.pt"] * 2
    gate.touch()
    second = coordinator(tmp_path / "s", jobs, address)
    out, errors = second.communicate(timeout=200)
    assert (out.splitlines()[-1:], second.returncode) == (["0"], 0), errors
    records = {record["name"]: record for record in Store(tmp_path / "s").records()}
    assert records["broken"]["error"] == "ArithmeticError: it broke" and records["n3"]["twice"] == 6
    for name, straightly in expected.items():
        assert {key: records[name][key] for key in SAME} == {key: straightly[key] for key in SAME}
        assert records[name]["machine"] == straightly["machine"]


def test_a_worker_that_does_not_see_the_folder_sends_the_line_alone(tmp_path):
    one, store = training("t", CONFIG, labels={}), Store(tmp_path / "s")
    store.begin([])
    with announced(store) as token:
        elsewhere = JobRunner().run(one.to_dict(), str(tmp_path / "s"), f"not {token}", 1)["record"]
        assert elsewhere["status"] == "done" and elsewhere["steps"] == 9
        assert list(store.runs.iterdir()) == []
        here = JobRunner().run(one.to_dict(), str(tmp_path / "s"), token, 1)["record"]
        assert {name: here[name] for name in SAME} == {name: elsewhere[name] for name in SAME}
        assert (store.runs / "t" / "summary.json").is_file()
    assert not store.token_file.exists()
    stopped = JobRunner()
    stopped.stop()
    event = stopped.run(one.to_dict(), str(tmp_path / "elsewhere"), "token", 1)
    assert event == {"died": "ended with code 143", "again": True} and stopped.progress()[1] == 9
    assert not (tmp_path / "elsewhere").exists()


def test_what_ray_cannot_do_is_refused(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path / "s", numbers(1))
    with pytest.raises(UsageError, match="on is 'mars'; give here, or ray without devices"):
        sweep.go(on="mars")
    with pytest.raises(UsageError, match="on is 'ray'; give here, or ray without devices"):
        sweep.go(on="ray", devices=["cpu"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"this needs the package ray; install it with: pip install 'demp\[ray\]'"):
        sweep.go(on="ray")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path / "s", numbers(1))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(DempError, match="no Ray cluster answers at RAY_ADDRESS=127.0.0.1:"):
            sweep.go(on="ray")
