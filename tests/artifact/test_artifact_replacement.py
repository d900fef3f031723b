"""A save replaces an earlier one whole, or leaves it as it was."""

import re
import sys
from pathlib import Path

import pytest
import torch
from saved_net import Net

import demp
import forks
import nets

HERE = Path(__file__).parent


def test_a_save_replaces_an_earlier_one(saved):
    model, path = saved
    with torch.no_grad():
        model.head.weight.mul_(2)
    demp.save(model, path)
    assert torch.equal(demp.load(Net, path).head.weight, model.head.weight)
    assert [file.name for file in path.parent.iterdir()] == ["model"]


def test_other_files_are_never_replaced(saved, tmp_path):
    model, path = saved
    (path / "notes.txt").write_text("mine")
    with pytest.raises(demp.ArtifactError, match=r"holds other files \(notes.txt\)"):
        demp.save(model, path)
    with pytest.raises(demp.ArtifactError, match="is a file; give a folder"):
        demp.save(model, path / "notes.txt")
    assert (path / "notes.txt").read_text() == "mine"
    with pytest.raises(demp.ArtifactError, match="holds other files"):
        demp.save(model, tmp_path)


def test_a_full_disk_keeps_the_old_one(saved):
    """The operating system refuses to write more than 2 kB: neither file is harmed."""
    model, path = saved
    code = f"""
import resource, signal, sys, torch, demp
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
from saved_net import Net
model = demp.load(Net, {str(path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    demp.save(model, {str(path)!r})
except demp.ArtifactError as error:
    print(error)
"""
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    done = forks.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert re.match(r"could not save the model to .*: .*large.*; what was there is unchanged", done.stdout)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}
    assert [folder.name for folder in path.parent.iterdir()] == ["model"]
    assert torch.equal(demp.load(Net, path).conv.weight, model.conv.weight)


@pytest.mark.parametrize("writes", ["save_file", "write_text"])
def test_no_space_left_keeps_the_old_one(saved, monkeypatch, writes):
    model, path = saved
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((demp.artifact.folder, writes) if writes == "save_file" else (Path, writes)), fail)
    with pytest.raises(demp.ArtifactError, match="No space left on device; what was there is unchanged"):
        demp.save(model, path)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}
    assert [folder.name for folder in path.parent.iterdir()] == ["model"]


def test_a_save_that_breaks_off_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demp.artifact.folder, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demp.save(nets.mlp(4, 6, 3), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
