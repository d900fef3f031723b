"""What earlier versions wrote is still read: a saved model and an interrupted run of version 0.1.0."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import demp
from demp.cli import main
from demp.train import artifact, checkpoint, resume
from demp.train.models import resnet18
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


def expected():
    return torch.load(OLD / "joins" / "examples.pt", weights_only=True)


def test_an_old_artifact_with_residual_sums_of_two_widths_gives_the_same_outputs():
    model = demp.load(lambda: resnet18(width=4 / 64, in_channels=1), OLD / "joins" / "artifact").eval()
    with torch.no_grad():
        assert torch.allclose(model(expected()["x"]), expected()["y"], rtol=0, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == 6_434


def test_an_old_pickle_of_a_cut_model_runs_and_is_cut_again():
    model = torch.load(OLD / "joins" / "model.pt", weights_only=False)
    x, y = expected()["x"], expected()["y"]
    with torch.no_grad():
        assert torch.allclose(model(x), y, rtol=0, atol=1e-5)
    graph = demp.trace(model, (x,))
    report = demp.cut(model, {graph.layers[0].name: [0]}, example_inputs=(x,), exact=False)
    assert report.removed


def test_the_runs_of_an_old_comparison_are_found_and_not_made_again(tmp_path, capsys):
    folder = tmp_path / "comparison"
    shutil.copytree(OLD / "comparison", folder)
    line = "compare --model mlp --width 0.1 --data digits --methods demp,random --steps 30 --batch-size 32 --target 0.5"
    line += " --strengths 0.5 --noise-keeps displacement --json"
    assert main([*line.split(), "--out", str(folder)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    kept = OLD / "comparison" / "results" / "first-1.jsonl"
    old = {result["method"]: result["eval/top1"] for result in map(json.loads, kept.read_text().splitlines())}
    assert {row["method"]: row["accuracy"] for row in rows} == old and len(old) == 3
    assert not (folder / "runs").exists() or not any((folder / "runs").iterdir())
