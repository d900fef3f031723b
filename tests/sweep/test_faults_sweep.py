"""What goes wrong around a sweep: one sentence, nothing dropped in silence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweepjobs import CONFIG

import demp.experiments.sweep.execution
import demp.experiments.sweep.job
from demp.cli import main
from demp.errors import UsageError
from demp.experiments.sweep import Job, Store, Sweep
from demp.experiments.sweep.search import Goal, Range, Search
from demp.files import results
from demp.files import results as records
from demp.files.results import TRAINING, parsed
from demp.train.stopping import ASKED
from resultlines import MEASURED


def test_a_worker_whose_coordinator_died_while_it_started_does_no_job(tmp_path):
    job = Job(name="a", work="sweepwork:doubled", arguments={"number": 1})
    asked = {"job": job.to_dict(), "folder": str(tmp_path / "a"), "log": str(tmp_path / "a.log")}
    command = [sys.executable, "-m", "demp.experiments.sweep", "1", str(2**22 + 1)]  # no process has that number
    done = subprocess.run(command, input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (128 + ASKED, "", [])


@pytest.mark.parametrize(
    "text", ["{\n", "\xff\xfe\n", "3\n", '{"op_code": 99}\n', '{"op_code": 0}\n', "[" * 10**5 + "\n"]
)
def test_a_garbled_journal_is_one_sentence(tmp_path, text):
    def make(setting):
        return CONFIG

    space, goal = {"model.width": Range(0.5, 1.0)}, Goal(trials=1, aims=["accuracy"])
    Search(tmp_path / "s", make, space, goal)
    (tmp_path / "s" / "search.journal").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UsageError, match=r"search.journal is damaged \(\w+\); restore it, or give another folder"
    ) as error:
        Search(tmp_path / "s", make, space, goal)
    assert "\n" not in str(error.value)


def test_a_journal_cannot_choose_what_the_space_has_not(tmp_path):
    goal = Goal(trials=1, aims=["accuracy"])
    found = Search(tmp_path / "s", lambda setting: CONFIG, {"model.name": ("mlp", "resnet18")}, goal)
    found.study.ask(found._distributions())
    journal = tmp_path / "s" / "search.journal"
    journal.write_text(journal.read_text().replace("resnet18", "os:system").replace('\\"mlp\\"', '\\"os:system\\"'))
    with pytest.raises(UsageError, match="search.journal is damaged"):
        Search(tmp_path / "s", lambda setting: CONFIG, {"model.name": ("mlp", "resnet18")}, goal)


LINE = {
    "schema": 1, "name": "a", "identity": "1", "labels": {"method": "demp", "setting": {}}, "status": "done",
    "work": TRAINING, **MEASURED,
}  # fmt: skip


@pytest.mark.parametrize("name", ["split", "eval/top1", "flops", "flops_dense", "train_seconds", "torch", "machine"])
@pytest.mark.parametrize("value", [None, "absent", [], float("nan")])
def test_an_incomplete_line_is_no_result_and_is_named(tmp_path, name, value):
    record = {**LINE, name: value}
    if value == "absent":
        del record[name]
    assert parsed(json.dumps(LINE).encode()) == (LINE, "")
    assert parsed(json.dumps(record).encode()) == (None, f"is not complete: it has no {name}")


@pytest.mark.parametrize(("name", "value"), [("flops_dense", 0), ("train_flops", 10**400), ("error", 3)])
def test_numbers_that_no_ratio_can_be_made_of(name, value):
    record = {**LINE, name: value, **({"status": "failed"} if name == "error" else {})}
    assert parsed(json.dumps(record).encode())[1] == f"is not complete: it has no {name}"


@pytest.mark.parametrize("line", [b"\xff\n", b"[" * 10**5 + b"\n", b'{"name": "a\n'])
def test_a_line_that_is_none_is_named_and_the_table_drawn(tmp_path, line, capsys):
    store = Store(tmp_path / "s")
    store.begin([], shared={"base": CONFIG.to_dict()})
    (store.results / "x.jsonl").write_bytes(
        line + json.dumps(LINE).encode() + b"\n" + json.dumps({**LINE, "split": 3}).encode() + b"\n"
    )
    assert main(["sweep", "--out", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert "x.jsonl:1 is not whole" in said and "x.jsonl:3 is not complete: it has no split" in said
    assert [record["name"] for record in records.read(tmp_path / "s").found] == ["a"]


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"shared": 3}'])
def test_a_damaged_sweep_file(tmp_path, text):
    store = Store(tmp_path / "s")
    store.begin([])
    store.sweep_file.write_text(text)
    with pytest.raises(UsageError, match="sweep.json"):
        Store(tmp_path / "s").begin([])


def test_a_damaged_job_file(tmp_path):
    job = Job(name="a", work="sweepwork:doubled", arguments={"number": 1})
    Store(tmp_path / "s").begin([])
    (tmp_path / "s" / "runs" / "a.json").write_text("[]")
    with pytest.raises(UsageError, match="a.json is damaged; delete it, and the run a goes on"):
        Sweep(tmp_path / "s", [job])


def test_a_folder_that_cannot_be_made_or_read_is_one_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert main(["sweep", "--seeds", "1", "--out", str(tmp_path / "file" / "s"), "--model", "mlp", "--steps", "1"]) == 2
    assert (
        capsys.readouterr().err
        == f"demp: cannot create the folder {tmp_path / 'file' / 's'}: Not a directory; give another\n"
    )

    def refuse(self, *args, **more):
        raise PermissionError(30, "Read-only file system", str(self))

    store = Store(tmp_path / "s")
    store.begin([], shared={"base": CONFIG.to_dict()})
    (store.results / "x.jsonl").write_text(json.dumps(LINE) + "\n")
    monkeypatch.setattr(
        "demp.files.replacement.os.open",
        lambda path, *args: refuse(Path(path)) if str(path).endswith(".new") else os_open(path, *args),
    )
    assert main(["sweep", "--out", str(tmp_path / "s")]) == 1
    said = capsys.readouterr().err
    assert "table.md: Read-only file system" in said and "unexpected" not in said and said.count("\n") == 1


os_open = os.open


def test_the_coordinator_looks_at_each_job_and_each_result_a_few_times_however_many_there_are(tmp_path, monkeypatch):
    """What it costs to coordinate grows with the jobs and no faster: each is hashed once, each line is read once."""
    counts = {}

    def counted(name, owner, attribute):
        real = getattr(owner, attribute)

        def call(*args, **more):
            counts[name] = counts.get(name, 0) + 1
            return real(*args, **more)

        monkeypatch.setattr(owner, attribute, call)

    counted("hashed", demp.experiments.sweep.job.hashlib, "sha256")
    counted("read", results, "parsed")
    counted("begun", Store, "note")
    counted("collected", demp.experiments.sweep.execution.gc, "collect")
    jobs = [Job(name=f"j{n:03d}", work="sweepwork:noted", arguments={"n": n}, labels={"n": n}) for n in range(60)]
    outcome = Sweep(tmp_path / "s", jobs).go()
    assert outcome.left == 0 and len(outcome.records) == 60
    assert counts["hashed"] <= 2 * 60 and counts["read"] == counts["begun"] == 60 and "collected" not in counts
