"""Sweeps that lose a process, are started twice, or are stopped: nothing is lost, nothing is done twice."""

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress

import pytest
from sweepjobs import CONFIG, held, job, numbers

import forks
from demp import files
from demp.cli import main
from demp.errors import UsageError
from demp.experiments.sweep import Store, Sweep, training
from demp.experiments.sweep.devices import VISIBLE, environment_of, places_on, threads_for
from demp.experiments.sweep.execution import exclusive
from demp.files import results as records
from demp.train import Observer, TrainingInterrupted, checkpoint
from demp.train.runfolder import read_lines
from demp.train.stopping import stop_signals

COORDINATOR = """
import json, sys
from demp.experiments.sweep import Job, Sweep
asked = json.loads(sys.stdin.read())
sweep = Sweep(asked["path"], [Job.from_dict(one) for one in asked["jobs"]])
outcome = sweep.go(jobs=asked["at_once"], say=lambda text: print(text, file=sys.stderr, flush=True))
print(outcome.left)
"""
SAME = ("eval/loss", "parameters", "train_flops", "cut_steps", "neurons")


def coordinator(path, jobs, at_once=1):
    """Another process that runs the sweep."""
    process = forks.Popen(
        [sys.executable, "-c", COORDINATOR],
        stdin=forks.PIPE,
        stdout=forks.PIPE,
        stderr=forks.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps({"path": str(path), "jobs": [one.to_dict() for one in jobs], "at_once": at_once}))
    process.stdin.close()
    process.stdin = None
    return process


def wait(condition):
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def lines(path):
    """Every line of results, by file."""
    return {file.name: read_lines(file) for file in (path / "results").iterdir()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What trainings come to that nothing interrupts."""
    path = tmp_path_factory.mktemp("straight")
    jobs = [training(f"s{seed}", CONFIG.merged({"seed": seed}), labels={}) for seed in (0, 1)]
    return {record["name"]: {name: record[name] for name in SAME} for record in Sweep(path, jobs).go().records}


def test_a_killed_coordinator_is_followed_by_the_same_command_and_its_runs_go_on(tmp_path, straight):
    gate, runs = tmp_path / "gate", tmp_path / "s" / "runs"
    jobs = held(gate, 0, 1)
    first = coordinator(tmp_path / "s", jobs, 2)
    wait(lambda: all((runs / f"s{seed}.reached").is_file() for seed in (0, 1)))
    first.kill()
    first.communicate()
    assert lines(tmp_path / "s") == {}
    second = coordinator(tmp_path / "s", jobs, 2)  # its processes wait for those of the first
    gate.touch()
    out, errors = second.communicate(timeout=200)
    assert (out, second.returncode) == ("0\n", 0), errors
    (written,) = lines(tmp_path / "s").values()
    assert sorted(record["name"] for record in written) == ["s0", "s1"]
    for record in written:
        assert record["resumed"] and {name: record[name] for name in SAME} == straight[record["name"]]
    assert list(runs.glob("*.lock")) == []


def test_a_killed_process_begins_its_job_again_from_its_checkpoint(tmp_path, straight):
    gate, runs, said = tmp_path / "gate", tmp_path / "s" / "runs", []

    def kill(text):
        said.append(text)
        if said == [text]:
            wait(lambda: (runs / "s0.reached").is_file() and (runs / "s0.reached").read_text())
            os.kill(int((runs / "s0.reached").read_text()), signal.SIGKILL)
        if "begun again" in text:
            assert checkpoint.newest(runs / "s0" / "checkpoints").name == "step-000000005.pt"
            gate.touch()

    outcome = Sweep(tmp_path / "s", held(gate, 0)).go(jobs=2, say=kill)
    (record,) = outcome.records
    assert {name: record[name] for name in SAME} == straight["s0"]
    assert said[1:3] == ["[1/1] s0: its process was ended by signal 9; it is begun again", "[1/1] s0: begins"]


def test_a_job_whose_process_is_killed_twice_or_leaves_is_a_failed_row_and_the_rest_goes_on(tmp_path):
    outcome = Sweep(tmp_path / "s", [job("big", "suicidal"), job("bad", "leaving"), *numbers(1)]).go(jobs=2)
    by_name = {record["name"]: record for record in outcome.records}
    logs = {name: tmp_path / "s" / "runs" / f"{name}.log" for name in ("big", "bad")}
    assert by_name["big"]["error"] == f"its process was ended by signal 9; {logs['big']} has what it said"
    assert len(list((tmp_path / "s" / "runs" / "big").iterdir())) == 2
    assert by_name["bad"]["error"] == f"its process ended with code 7; {logs['bad']} has what it said"
    assert logs["bad"].read_text() == "last words\n"
    assert by_name["n1"]["twice"] == 2


def test_a_second_command_on_the_folder_is_refused_while_the_first_runs(tmp_path, capsys):
    gate = tmp_path / "gate"
    jobs = [job(f"m{number}", "meeting", number=number, gate=str(gate)) for number in range(3)]
    first = coordinator(tmp_path / "s", jobs, 2)
    wait(lambda: len(list((tmp_path / "s" / "runs").glob("*.json"))) == 2)
    message = f"another command runs the jobs of {tmp_path / 's'}; wait for its end, or stop it"
    with pytest.raises(UsageError, match=re.escape(message)):
        Sweep(tmp_path / "s", [*jobs, *numbers(1)]).go()
    gate.touch()
    out, errors = first.communicate(timeout=200)
    assert out == "0\n", errors
    (written,) = lines(tmp_path / "s").values()
    assert sorted(record["name"] for record in written) == ["m0", "m1", "m2"]
    assert all(record["calls"] == 1 for record in written)
    assert Sweep(tmp_path / "s", jobs).go().left == 0


def test_the_command_that_is_refused_says_so_and_ends_with_code_2(tmp_path, capsys):
    out = tmp_path / "s"
    command = ["sweep", "--model", "mlp", "--data", "digits", "--steps", "1", "--device", "cpu", "--out", str(out)]
    assert main([*command, "--seeds", "1"]) == 0
    capsys.readouterr()
    handle = files.try_to_hold(out / ".lock")
    assert main([*command, "--seeds", "1"]) == 0, "nothing is to be done"
    assert main([*command, "--seeds", "2"]) == 2
    os.close(handle)
    error = capsys.readouterr().err
    assert error.startswith(f"demp: another command runs the jobs of {out}; ") and error.count("\n") == 1


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    """Several processes ran its jobs, each with a file of results, of which one was killed while it wrote."""
    wanted = numbers(1, 2, 3)
    done = [{**record} for record in Sweep(tmp_path / "s", wanted).go().records]
    old = tmp_path / "s" / "results"
    (old / "runs.jsonl").unlink()
    (old / "host-123456-1.jsonl").write_text(json.dumps(done[0]) + "\n")
    (old / "host-123456-2.jsonl").write_text(json.dumps(done[1])[:40])
    for folder, name in (("leaders", "host-123456-1.json"), ("claims", f"{wanted[1].identity}.1")):
        (tmp_path / "s" / folder).mkdir()
        (tmp_path / "s" / folder / name).write_text('{"leader": "host-123456-1", "token": "t"}')
    sweep = Sweep(tmp_path / "s", wanted)
    assert sweep.missing == wanted[1:]
    records = sweep.go().records
    assert records[0] == done[0] and [record["twice"] for record in records] == [2, 4, 6]


def test_a_line_that_a_killed_coordinator_left_half_is_cut_off(tmp_path):
    Sweep(tmp_path, numbers(1)).go()
    file = tmp_path / "results" / "runs.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:50])
    assert [record["twice"] for record in Sweep(tmp_path, numbers(1, 2)).go().records] == [2, 4]
    assert file.read_text().startswith(whole) and Store(tmp_path).skipped() == []


def test_only_one_process_is_inside_a_folder_and_waiting_can_be_stopped(tmp_path):
    class Impatient(Observer):
        asked = 0

        def asks_to_stop(self):
            self.asked += 1
            return self.asked == 3

    code = f"""
import pathlib, sys
from demp.experiments.sweep.execution import exclusive
with exclusive(pathlib.Path({str(tmp_path / "lock")!r})):
    print("in", flush=True)
    sys.stdin.read()
"""
    process = forks.Popen([sys.executable, "-c", code], stdin=forks.PIPE, stdout=forks.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with (
        pytest.raises(TrainingInterrupted, match="stopped before it began"),
        exclusive(tmp_path / "lock", [Impatient()]),
    ):
        raise AssertionError("inside")
    process.kill()
    process.communicate()
    with exclusive(tmp_path / "lock"):
        pass


def test_processes_are_kept_and_have_one_thread_on_a_cpu(tmp_path):
    jobs = [job(f"j{number}", "surrounded", number=number) for number in range(4)]
    found = Sweep(tmp_path, jobs).go(devices=["cpu"]).records
    assert len({record["process"] for record in found}) == 1 and found[0]["process"] != os.getpid()
    assert {(record["threads"], record[VISIBLE], record["OMP_NUM_THREADS"]) for record in found} == {(1, "", "1")}


def test_each_device_has_its_own_processes_that_see_nothing_else(monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    assert environment_of("cuda:1", 0)[VISIBLE] == "1" and VISIBLE not in environment_of("cuda", 0)
    monkeypatch.setenv(VISIBLE, "4,GPU-abc")
    assert environment_of("cuda:1", 0)[VISIBLE] == "GPU-abc"
    assert places_on([], 2) == ["", ""] and places_on(["cpu"], 2) == ["cpu", "cpu"]
    monkeypatch.setattr("demp.experiments.sweep.devices.validate_device", lambda device: None)
    assert places_on(["cuda:0", "cuda:1"], 2) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    on = {device: training("t", CONFIG.merged({"device": device}), labels={}) for device in ("cpu", "cuda", "auto")}
    assert [threads_for("", on[device]) for device in ("cpu", "cuda", "auto")] == [1, 0, 1]
    assert threads_for("cuda:0", on["auto"]) == 0 and threads_for("", job("a")) == 1


def test_devices_that_do_not_fit_are_refused(tmp_path):
    one = Sweep(tmp_path, [training("t", CONFIG.merged({"device": "cuda"}), labels={})])
    for wrong, message in (
        ({"devices": ["cpu", "cpu"]}, "the device cpu is named twice; several processes on each device: --jobs 2"),
        ({"devices": ["cuda:7"]}, "there is no device cuda:7 here; CUDA devices here: 0"),
        ({"devices": ["cqu"]}, "device 'cqu' cannot be used here"),
        ({"devices": ["cpu"]}, "the run t is for cuda, but --devices are cpu"),
    ):
        with pytest.raises(UsageError, match=message):
            one.go(**wrong)
    assert records.read(tmp_path).found == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_run_ends_stops_the_sweep_after_it(tmp_path, number, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    jobs = [job("first", "signalled", number=int(number)), *numbers(2)]
    with pytest.raises(TrainingInterrupted, match="interrupted: 1 of 2 runs are done") as stopped:
        Sweep(tmp_path / "s", jobs).go()
    assert stopped.value.exit_code == code
    assert [record["name"] for record in Store(tmp_path / "s").records()] == ["first"]
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert [record["name"] for record in Sweep(tmp_path / "s", jobs).go().records] == ["first", "n2"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_work_that_asks_its_observers_hears_of_a_signal(tmp_path, number, code):
    with pytest.raises(TrainingInterrupted, match="interrupted: 0 of 1 runs are done") as stopped:
        Sweep(tmp_path / "s", [job("only", "patient", number=int(number))]).go()
    assert stopped.value.exit_code == code


def test_a_second_signal_does_not_wait():
    with stop_signals() as outer, stop_signals() as inner:
        assert not outer() and not inner()
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer() == inner() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_killed_at_any_moment_it_goes_on_with_exactly_what_is_missing(tmp_path):
    jobs = [job(f"j{number:02d}", "noted", number=number) for number in range(60)]
    file, done = tmp_path / "results" / "runs.jsonl", list[str]()
    for kill in range(1, 6):
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                Sweep(tmp_path, jobs).go()
            os._exit(0)
        wait(lambda until=10 * kill: file.is_file() and file.read_bytes().count(b"\n") >= until)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        before, done = done, [line["name"] for line in records.read(tmp_path).found]
        assert done[: len(before)] == before and done == [one.name for one in jobs[: len(done)]]
    assert Sweep(tmp_path, jobs).go().left == 0
    written = [json.loads(line)["name"] for line in file.read_text().splitlines()]
    assert written == [one.name for one in jobs], "no line twice, none half"
