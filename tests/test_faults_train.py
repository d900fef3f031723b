"""What goes wrong around a training run: one sentence, nothing half-changed."""

import json
import shutil

import pytest
import torch

from demp.cli import main
from demp.errors import UsageError
from demp.train import Observer, TrainConfig, checkpoint, resume, train
from demp.train.extras import need


class Crash(Observer):
    """Ends the process's part of a run after a step."""

    def __init__(self, at):
        self.at = at

    def step(self, run, seconds):
        if run.step == self.at:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """A run of 20 steps that ended after 12, with a checkpoint of step 10."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig.from_dict(
        {
            "model": {"name": "mlp", "options": {"hidden": [20, 10]}},
            "method": {"name": "dense"},
            "data": {"name": "digits"},
            "steps": 20,
            "batch_size": 32,
            "device": "cpu",
            "checkpoint_every_steps": 5,
            "log_every_steps": 2,
            "out": str(out),
        }
    )
    with pytest.raises(ZeroDivisionError):
        train(config, observers=[Crash(12)])
    return out


@pytest.fixture
def run(broken_off, tmp_path):
    """A copy of that run, to damage."""
    return shutil.copytree(broken_off, tmp_path / "run")


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuses(folder, message, kind=UsageError):
    before = contents(folder)
    with pytest.raises(kind, match=message) as caught:
        resume(folder)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


def test_a_copied_run_resumes(run):
    assert resume(run).summary["steps"] == 20
    assert [p.name for p in checkpoint.listed(run / "checkpoints")] == [
        "step-000000015.pt",
        "step-000000020.pt",
    ]


def test_resuming_with_a_changed_config(run):
    file = run / "config.toml"
    file.write_text(file.read_text().replace("batch_size = 32", "batch_size = 64"))
    refuses(run, "batch_size was 32 and is 64; restore config.toml, or start a new run")


def test_resuming_with_an_unknown_key_in_the_config(run):
    file = run / "config.toml"
    file.write_text("bach_size = 3\n" + file.read_text())
    refuses(run, "unknown config key 'bach_size'; did you mean 'batch_size'")


def test_resuming_with_another_torch(run, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    refuses(run, r"was trained with torch 2\..*, this is torch 9.9.9; install that version")


def test_resuming_after_the_data_changed(run):
    path = checkpoint.newest(run / "checkpoints")
    state = checkpoint.load(path)
    state["facts"]["train_size"] = 7
    torch.save(state, path)
    refuses(run, "the data set digits is not the one that the run began with")


def test_resuming_from_a_damaged_checkpoint(run):
    path = checkpoint.newest(run / "checkpoints")
    path.write_bytes(path.read_bytes()[:-200])
    refuses(
        run,
        f"{path.name} is damaged; step-000000005.pt before it is whole: to go on from there, delete {path}",
        checkpoint.CheckpointError,
    )
    path.unlink()
    assert resume(run).summary["steps"] == 20


def test_a_killed_write_leaves_a_file_that_is_ignored(run):
    (run / "checkpoints" / ".step-000000015.pt.new").write_bytes(b"half")
    assert resume(run).summary["steps"] == 20


def test_evaluating_a_run_that_is_not_finished(run, capsys):
    assert main(["eval", str(run)]) == 2
    assert f"is not finished; finish it with: demp resume {run}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "no builder"])
def test_evaluating_a_damaged_artifact(run, capsys, damage):
    resume(run)
    weights, architecture = (run / "model" / n for n in ("model.safetensors", "architecture.json"))
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "altered":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    else:
        values = json.loads(architecture.read_text())
        architecture.write_text(json.dumps({**values, "builder": None}))
    capsys.readouterr()
    code = main(["eval", str(run)])
    err = capsys.readouterr().err
    assert code in (1, 2) and err.startswith("demp: ") and err.count("\n") == 1
    assert str(run / "model") in err


def test_evaluating_on_data_that_does_not_fit(run, tmp_path, capsys):
    import datasets
    from PIL import Image

    resume(run)
    rows = {"image": [Image.new("L", (8, 8), i) for i in range(4)], "label": [0, 1, 2, 57]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "set" / "test.parquet")
    capsys.readouterr()
    assert main(["eval", str(run), "--data", str(tmp_path / "set")]) == 2
    assert "has a label 57, but the model's head has 10 classes" in capsys.readouterr().err


def test_noise_that_destroys_the_network_exits_with_1(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--model", "mlp", "--steps", "30", "--device", "cpu", "--noise", "1e25"]
    code = main(["train", *arguments, "--out", str(out), "--set", "checkpoint_every_steps=2"])
    err = capsys.readouterr().err
    assert code == 1
    assert "stopped; " in err and "lower the learning rate, the strength or the noise" in err
    assert err.count("\n") == 1


def test_a_package_that_is_not_installed(monkeypatch, capsys):
    import importlib

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UsageError, match=r"needs the package scikit-learn.*'demp\[train\]'"):
        need("sklearn.datasets")
    assert main(["recipes"]) == 2
    assert "needs the package tyro; install it with: pip install" in capsys.readouterr().err


def test_a_package_that_is_broken_keeps_its_own_error(monkeypatch):
    import importlib

    def broken(name):
        raise ModuleNotFoundError("No module named 'libmissing'", name="libmissing")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="libmissing"):
        need("kornia.augmentation")
