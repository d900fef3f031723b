"""What a resume reads is as it was written, or it is refused with the file's name and a way on; one at a time."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import forks
from demp.cli import main
from demp.errors import UsageError
from demp.train import checkpoint, resume, train
from demp.train.checkpoint import CheckpointError
from demp.train.recovery import last_state
from demp.train.runfolder import RunFolder, read_lines
from test_faults_train import Crash, broken_off, contents  # noqa: F401  (a fixture)


@pytest.fixture
def run(broken_off, tmp_path):  # noqa: F811
    return Path(shutil.copytree(broken_off, tmp_path / "run"))


def flipped(file: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def test_no_flipped_bit_of_a_checkpoint_is_read(tmp_path):
    payload = {"value": torch.linspace(0, 1, 50), "text": "x" * 40, "number": 3.25, "list": [1, 2]}
    path = checkpoint.save(tmp_path, 5, payload)
    data, known, refused = path.read_bytes(), checkpoint.load(path), 0
    for byte in range(0, len(data), 5):
        flipped(path, byte, byte % 8)
        try:
            assert same(checkpoint.load(path), known), f"bit {byte % 8} of byte {byte}"
        except CheckpointError:
            refused += 1
        path.write_bytes(data)
    assert refused > len(data) / 5 / 2  # of those tried; the others are padding


def test_a_flipped_bit_of_a_weight_is_refused_with_a_way_on(run):
    path = checkpoint.newest(run / "checkpoints")
    weight = checkpoint.load(path)["model"]["fc1.weight"].numpy().tobytes()
    flipped(path, path.read_bytes().index(weight) + 3, 6)
    before = contents(run)
    with pytest.raises(CheckpointError, match=r"step-000000010.pt is damaged.*; step-000000005.pt before it is whole"):
        resume(run)
    assert contents(run) == before
    path.unlink()
    assert resume(run).summary["steps"] == 20


def test_where_none_is_whole_it_says_so(run):
    for path in checkpoint.listed(run / "checkpoints"):
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no older checkpoint is whole: start the run anew"):
        resume(run)


@pytest.mark.parametrize("file", ["metrics.jsonl", "cuts.jsonl"])
@pytest.mark.parametrize("damage", ["shorter", "absent", "altered", "torn"])
def test_logs_that_are_not_those_that_the_checkpoint_counts(run, file, damage):
    path, lines = run / file, (run / file).read_bytes().splitlines(keepends=True)
    if file == "cuts.jsonl":  # dense training has none: as if it had
        lines = [b'{"step": 1}\n', b'{"step": 2}\n']
        for at in checkpoint.listed(run / "checkpoints"):
            state = checkpoint.load(at)
            state["lines"][file], state["lines_sha256"] = 2 if at.stem.endswith("10") else 1, {}
            torch.save(state, at)
        path.write_bytes(b"".join(lines))
        if damage == "altered":
            return
    if damage == "absent":
        path.unlink()
    else:
        bad = {"shorter": lines[:1], "altered": [lines[0].upper(), *lines[1:]], "torn": [lines[0], lines[1][:-1]]}[
            damage
        ]
        path.write_bytes(b"".join(bad))
    words = "was altered: its first 5 lines" if damage == "altered" else r"has \d lines, and step-000000010.pt counts"
    with pytest.raises(CheckpointError, match=f"{file} {words}"):
        resume(run)


def test_what_came_after_the_checkpoint_may_be_anything(run):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 12, "tor\xff')
    assert resume(run).summary["steps"] == 20
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [*range(2, 22, 2), 20]


# One process at a time --------------------------------------------------------------------------------


def test_a_second_resume_is_refused(run):
    before = contents(run)
    with RunFolder(run).held():
        with pytest.raises(UsageError, match=f"the run {run} is in progress in another process; wait for it, or stop"):
            resume(run)
        assert main(["resume", str(run)]) == 2
    assert contents(run) == before
    assert resume(run).summary["steps"] == 20 and not (run / ".lock").exists()


def test_a_second_train_is_refused(tmp_path, run):
    config = RunFolder(run).config().merged({"out": str(tmp_path / "new")})
    with RunFolder(tmp_path / "new").held(), pytest.raises(UsageError, match="is in progress in another process"):
        train(config)
    assert train(config).summary["steps"] == 20


def test_the_lock_of_a_killed_process_is_free(run):
    code = f"""
import os
from demp.train.runfolder import RunFolder
with RunFolder({str(run)!r}).held():
    os._exit(9)
"""
    assert forks.run([sys.executable, "-c", code]).returncode == 9 and (run / ".lock").exists()
    with RunFolder(run).held():
        pass
    assert not (run / ".lock").exists()


# Killed before it began -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [["environment.json"], ["environment.json", "metrics.jsonl", ".config.toml.new", ".lock"]]
)
def test_a_run_that_was_killed_before_its_config_can_be_started_again(run, names, tmp_path):
    config = RunFolder(run).config().merged({"out": str(tmp_path / "new"), "steps": 2})
    (tmp_path / "new").mkdir()
    for name in names:
        (tmp_path / "new" / name).write_text("")
    with pytest.raises(
        UsageError, match="was ended before its first step, so there is nothing to continue; start it a"
    ):
        resume(tmp_path / "new")
    assert train(config).summary["steps"] == 2
    assert not [file for file in os.listdir(tmp_path / "new") if file.startswith(".")]


def test_a_folder_with_other_things_is_not_taken(run, tmp_path):
    config = RunFolder(run).config().merged({"out": str(tmp_path / "new"), "steps": 2})
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UsageError, match="is not empty; give another"):
        train(config)
    assert os.listdir(tmp_path / "new") == ["metrics.jsonl"]


def test_an_unwritable_folder_is_one_sentence(run, monkeypatch):
    def refuse(*args):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("demp.files.replacement.os.open", refuse)
    with pytest.raises(UsageError, match=f"cannot write into the run folder {run}: Read-only file system"):
        resume(run)


@pytest.mark.parametrize("line", [b"\xff\n", b"{\n", b"3\n", b"[" * 10**5 + b"\n"])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(b'{"step": 1}\n' + line)
    with pytest.raises(
        UsageError, match=r"x.jsonl:2 is not a whole line of JSON; restore the file, or delete that line"
    ):
        read_lines(tmp_path / "x.jsonl")


def test_an_old_checkpoint_without_hashes_is_whole():
    path, state = last_state(RunFolder(Path(__file__).parent.parent / "old" / "run"))
    assert path.name == "step-000000020.pt" and "lines_sha256" not in state
