"""Searches of tiny networks on the digits, with Optuna."""

import json
import math
import os
import signal
import sys
import time

import optuna
import pytest
from sweepjobs import CONFIG

import forks
from demp.errors import UsageError
from demp.experiments.sweep.search import Goal, Range, Search, front, read_range
from demp.files.results import read

STRENGTH, NOISE = "method.options.peak_strength", "method.options.peak_noise_std"
SPACE = {STRENGTH: Range(1e-3, 1.0, log=True), "model.width": (1, 2)}


def make(setting):
    config = CONFIG
    for key, value in setting.items():
        values = value
        for name in reversed(key.split(".")):
            values = {name: values}
        config = config.merged(values)
    return config


def search(path, trials, *, space=SPACE, aims=("accuracy", "flops"), seeds=1):
    goal = Goal(aims=aims, trials=trials, seeds=seeds)
    return Search(path, make, space, goal, shared={"base": CONFIG.to_dict()})


def test_every_trial_is_told_and_a_search_goes_on_where_it_stopped(tmp_path):
    first = search(tmp_path / "s", 3)
    outcome = first.go()
    assert (outcome.left, len(outcome.records)) == (0, 3)
    again = search(tmp_path / "s", 5)
    assert (again.missing, again.left()) == ([], 2)
    records = again.go().records
    assert records[:3] == outcome.records
    assert [record["name"] for record in records] == [f"trial{number:04d}-s0" for number in range(5)]
    for trial, record in zip(again.study.trials, records, strict=True):
        assert trial.params == record["labels"]["setting"] and record["labels"]["trial"] == trial.number
        assert trial.values == [record["eval/top1"], record["flops"] / record["flops_dense"]]
        assert record["arguments"]["config"]["method"]["options"]["peak_strength"] == trial.params[STRENGTH]
        assert record["arguments"]["config"]["model"]["width"] == trial.params["model.width"]
        assert 1e-3 <= trial.params[STRENGTH] <= 1 and trial.params["model.width"] in (1, 2)
    best = {trial.number for trial in again.study.best_trials}
    assert set(front(records, ["accuracy", "flops"])) == best
    assert search(tmp_path / "s", 5).go().left == 0


def test_a_trial_is_the_mean_of_its_seeds_and_fails_with_one_of_them(tmp_path):
    found = search(tmp_path / "s", 2, seeds=2, aims=["weight_sparsity"])
    records = found.go().records
    assert sorted(record["name"] for record in records) == [f"trial000{n}-s{seed}" for n in (0, 1) for seed in (0, 1)]
    for trial in found.study.trials:
        two = [record["weight_sparsity"] for record in records if record["labels"]["trial"] == trial.number]
        assert trial.values == pytest.approx([sum(two) / 2])
    failing = search(tmp_path / "f", 2, space={"model.options.hidden": Range(1, 2)})
    failed = failing.go().records
    assert {record["status"] for record in failed} == {"failed"}
    assert {trial.state for trial in failing.study.trials} == {optuna.trial.TrialState.FAIL}
    assert failing.study.best_trials == [] and front(failed, ["accuracy"]) == []


KILLED = """
import sys
sys.path.insert(0, {here!r})
import test_sweep_search as t
t.search({path!r}, 3).go(jobs=2)
"""


def test_a_killed_search_tries_the_same_values_again(tmp_path):
    here = os.path.dirname(__file__)
    process = forks.Popen([sys.executable, "-c", KILLED.format(here=here, path=str(tmp_path / "s"))])
    until = time.monotonic() + 200
    while len(list((tmp_path / "s" / "runs").glob("*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (tmp_path / "s" / "search.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    begun = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "s" / "runs").glob("*.json")}
    assert len(begun) >= 2
    found = search(tmp_path / "s", 3)
    records = {record["name"]: record for record in found.go().records}
    assert len(records) == 3 and len(found.study.trials) == 3
    for name, one in begun.items():
        assert records[name]["identity"] == one["identity"] and records[name]["labels"] == one["labels"]
    assert [trial.state for trial in found.study.trials] == [optuna.trial.TrialState.COMPLETE] * 3
    assert len(read(tmp_path / "s").found) == 3


def test_a_search_takes_up_what_another_command_chose_and_makes_no_trial_more_than_asked(tmp_path):
    one, two = search(tmp_path / "s", 2), search(tmp_path / "s", 2)
    (first,), (second,) = one.more(), one.more()
    assert (one.left(), one.more()) == (0, [])
    assert [job.name for job in two.find_missing()] == [first.name, second.name] == ["trial0000-s0", "trial0001-s0"]
    assert (two.left(), two.more()) == (0, [])


def test_equal_trials_are_trained_once(tmp_path):
    found = search(tmp_path / "s", 4, space={"model.width": (1, 1.0)}, aims=["flops"])
    records = found.go(jobs=2).records
    assert len(records) == 4 and len({record["identity"] for record in records}) <= 2
    assert len(read(tmp_path / "s").found) == len({record["identity"] for record in records})
    assert {trial.state for trial in found.study.trials} == {optuna.trial.TrialState.COMPLETE}


def test_ranges_and_what_cannot_be_searched(tmp_path):
    assert read_range("a", "log:1e-4:1e-1") == Range(1e-4, 1e-1, log=True)
    assert read_range("a", "1:10") == Range(1, 10) and isinstance(read_range("a", "1:10").low, int)
    assert read_range("a", "-0.5:1") == Range(-0.5, 1)
    for text, message in (
        ("0.1", "a=0.1 is no range; write a=log:1e-4:1e-1"),
        ("log:x:1", "is no range"),
        ("lin:1:2", "is no range"),
        ("2:1", "a=2:1 is empty; give a first end below the second"),
        ("log:0:1", "is empty; give a first end below the second, and above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            read_range("a", text)
    for wrong, message in (
        ({"space": {}}, "nothing to search; give --search-space"),
        ({"space": {"seed": Range(0, 1)}}, "seed cannot be swept here; use --seeds"),
        ({"space": {STRENGTH: ()}}, r"the choices of method.options.peak_strength are \[\]"),
        ({"aims": ["acuracy"]}, "aims is 'acuracy'; choose one of accuracy, .*; did you mean 'accuracy'"),
        ({"aims": []}, "aims are none"),
        ({"trials": 0}, "trials is 0; give at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            search(tmp_path / "s", **{"trials": 1, **wrong})
    assert not (tmp_path / "s").exists()
    search(tmp_path / "s", 1)
    with pytest.raises(UsageError, match=r"a search with another config: search\.space\..*high was 1\.0 and is 2"):
        search(tmp_path / "s", 1, space={**SPACE, STRENGTH: Range(1e-3, 2.0, log=True)})


def test_the_front_has_who_is_beaten_by_nobody():
    def record(trial, top1, flops):
        labels = {"trial": trial, "seed": 0}
        return {"status": "done", "labels": labels, "eval/top1": top1, "flops": flops, "flops_dense": 10}

    records = [record(0, 0.9, 9), record(1, 0.8, 5), record(2, 0.8, 6), record(3, 0.7, 5), record(4, 0.8, 5)]
    records += [record(5, 0.1, 1), {"status": "failed", "labels": {"trial": 6}}]
    assert front(records, ["accuracy", "flops"]) == [0, 1, 4, 5]
    assert front(records, ["accuracy"]) == [0] and front(records, ["flops"]) == [5]
    assert math.isclose(records[0]["flops"] / records[0]["flops_dense"], 0.9)
