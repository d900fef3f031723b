"""What earlier versions wrote is still read: a saved model and an interrupted run of version 0.1.0."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from demp.train import artifact, checkpoint, resume
from demp.train.runfolder import RunFolder, read_lines

OLD = Path(__file__).parent / "old"
CHECKPOINTS = sorted((OLD / "run" / "checkpoints").iterdir())


def test_an_old_saved_model_loads_to_the_bit():
    model, facts = artifact.load(OLD / "model")
    probe = json.loads((OLD / "model" / "architecture.json").read_text())["probe"]
    summary = json.loads((OLD / "summary.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == summary["parameters"]
    assert facts.name == "digits" and len(probe["outputs"][0]["values"]) == 10


@pytest.mark.parametrize("file", CHECKPOINTS, ids=lambda file: file.stem)
def test_an_old_checkpoint_is_resumed(file, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(OLD / "run", folder)
    for other in CHECKPOINTS:
        if other > file:
            (folder / "checkpoints" / other.name).unlink()
    state = checkpoint.load(file)
    monkeypatch.setattr(torch, "__version__", state["torch"])  # which is otherwise refused, with a sentence
    summary = resume(folder).summary
    assert summary["steps"] == 30 and summary["initial_weights"] == "5756b9ce754544bd"
    files = RunFolder(folder)
    steps = [cut["step"] for cut in read_lines(files.cuts_file)]
    assert steps[:6] == [5, 10, 15, 20, 25, 30]
    before = (OLD / "run" / "metrics.jsonl").read_bytes().splitlines()[: state["lines"]["metrics.jsonl"]]
    assert files.metrics_file.read_bytes().splitlines()[: len(before)] == before
