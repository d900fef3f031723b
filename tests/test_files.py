"""Files and folders that are replaced are whole at any moment, and writers that were killed leave nothing for ever."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import demp
from demp.errors import ArtifactError
from demp.files import replacement as files
from thinning import mostly_slow

X = (torch.zeros(2, 4),)


def net(value: float = 0.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    nn.init.constant_(model[0].bias, value)
    return model


def value_of(path) -> float:
    return float(demp.load(net, path)[0].bias[0].detach())


def killed_at_rename(number: int, action) -> None:
    """Do it in this process, which is killed before so many renames; never returns."""
    real, done = os.rename, 0

    def rename(*args, **more):
        nonlocal done
        done += 1
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)

    os.rename = rename
    action()
    os._exit(0)


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("what", mostly_slow(("folder", "first_folder", "file"), quick=("folder",)))
def test_what_is_killed_at_any_line_is_whole(tmp_path, what):
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), what, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_save_that_is_killed_before_each_rename_leaves_the_old_model_or_the_new(tmp_path):
    path, found = demp.save(net(1.0), tmp_path / "model", example_inputs=X), []
    for number in range(1, 10):
        pid = os.fork()
        if pid == 0:
            killed_at_rename(number, lambda: demp.save(net(2.0), path, example_inputs=X))
        if os.waitpid(pid, 0)[1] == 0:
            break
        found.append(value_of(path))
    assert (
        found[:3] == [1.0, 1.0, 2.0]
        and set(found[3:]) <= {2.0}
        and value_of(path) == 2.0
        and names(tmp_path) == ["model"]
    )


def test_between_the_renames_the_old_one_is_put_back_where_it_is_looked_for(tmp_path):
    path = demp.save(net(1.0), tmp_path / "model", example_inputs=X)
    path.rename(tmp_path / ".model.old-123")  # as earlier versions called it, with the process's number
    assert value_of(path) == 1.0 and names(tmp_path) == ["model"]


def test_where_it_cannot_be_put_back_it_is_read_where_it_lies(tmp_path, monkeypatch):
    path = demp.save(net(1.0), tmp_path / "model", example_inputs=X)
    path.rename(tmp_path / ".model.old-123")

    def refuse(*args):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(type(path), "rename", refuse)
    assert value_of(path) == 1.0 and names(tmp_path) == [".model.old-123"]


def test_leftovers_of_living_writers_stay(tmp_path):
    path = tmp_path / "model"
    with files.replacing_folder(path) as mine:
        demp.save(net(1.0), path, example_inputs=X)
        assert mine.is_dir() and value_of(path) == 1.0
        for name in demp.save(net(2.0), tmp_path / "other", example_inputs=X).iterdir():
            (mine / name.name).write_bytes(name.read_bytes())
    assert value_of(path) == 2.0 and names(tmp_path) == ["model", "other"]


def test_many_writers_of_one_folder(tmp_path):
    path = tmp_path / "model"
    demp.save(net(0.0), path, example_inputs=X)
    models = [net(float(number)) for number in range(3)]

    def write(model):
        for _ in range(8):
            demp.save(model, path)

    threads = [threading.Thread(target=write, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["model"] and value_of(path) in (0.0, 1.0, 2.0)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_halves_of_characters_are_written_as_a_sign(tmp_path):
    files.write(tmp_path / "file", "a\ud800b")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "a\ufffdb"


def test_a_folder_of_others_is_never_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("mine")
    with pytest.raises(ArtifactError, match="holds other files"):
        demp.save(net(), tmp_path / "model")
    assert names(tmp_path) == ["model"]
