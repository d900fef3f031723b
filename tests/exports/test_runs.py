"""`demp export` of a finished run: test images, the card, errors in one sentence."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

import demp
from demp.cli import main
from demp.exports import runs
from demp.exports.card import card
from demp.train import artifact

TINY = ["--model", "mlp", "--batch-size", "32", "--device", "cpu", "--lr", "0.03", "--noise", "0.05", "--steps", "40"]


def run(capsys, *arguments):
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a network that shrank, tested on held-out images."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *TINY, "--set", "data.validation=0.2", "--out", str(out)]) == 0
    return out


def test_the_subject_of_a_run(finished):
    subject = runs.subject_of(finished)
    model, facts = artifact.load(finished)
    _, test = artifact.test_set(finished, facts, torch.device("cpu"))
    assert torch.equal(subject.inputs[0], next(test.batches(runs.IMAGES))[0])
    assert len(test) == 355  # the test split, not what the run held out
    assert [p.shape for p in subject.model.parameters()] == [p.shape for p in model.parameters()]
    assert sum(p.numel() for p in subject.build().parameters()) == subject.summary["parameters_dense"]


def test_export_says_what_it_did_and_writes_a_card(finished, capsys):
    code, out, err = run(capsys, "export", str(finished), "--to", "safetensors")
    folder = finished / "export-safetensors"
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder}/model.safetensors: ") and "at batch sizes 1, 2, 5, 16" in out
    summary, report = (json.loads((p).read_text()) for p in (finished / "summary.json", folder / "export.json"))
    for name in ("neurons", "parameters", "flops"):
        assert report[name] == summary[name] and report[f"{name}_dense"] == summary[f"{name}_dense"]
    assert summary["neurons"] < summary["neurons_dense"]
    text = (folder / "README.md").read_text()
    assert text.startswith("# mlp\n")
    assert "Trained on digits for 40 steps, recipe plain, method demp, seed 0, torch" in text
    accuracy = f"{summary['eval/top1']:.2%}"
    assert f"| validation accuracy (images held out of the training split) | {accuracy} | | |" in text
    assert f"| neurons | {summary['neurons']:,} | {summary['neurons_dense']:,} |" in text
    assert 'artifact.load(".")' in text and "Input: images (1, 8, 8)" in text
    evaluated = artifact.evaluate(folder)
    assert (evaluated["split"], evaluated["neurons"]) == ("test", summary["neurons"])


def test_the_card_says_of_which_split_the_accuracy_is(finished, tmp_path):
    report = demp.export(finished, tmp_path / "out", to="state-dict")
    subject = runs.subject_of(finished)
    text = card(report, {**subject.summary, "split": "test", "eval/top1": 0.5}, subject.builder)
    assert "| test accuracy | 50.00% | | |" in text and "validation" not in text


def test_the_card_of_a_model_without_a_run(finished, tmp_path, capsys):
    shutil.copytree(finished / "model", tmp_path / "model")
    code, _, err = run(capsys, "export", str(tmp_path / "model"), "--to", "state-dict", "--out", str(tmp_path / "a"))
    assert (code, err) == (0, "")
    text = (tmp_path / "a" / "README.md").read_text()
    assert text.startswith("# mlp\n") and "accuracy" not in text and "Trained" not in text


@pytest.mark.parametrize("to", ["torch-export", "state-dict"])
def test_as_json_it_is_the_report(finished, capsys, tmp_path, to):
    code, out, _ = run(capsys, "export", str(finished), "--to", to, "--out", str(tmp_path / "out"), "--json")
    report = json.loads(out)
    assert code == 0
    assert report == json.loads((tmp_path / "out" / "export.json").read_text())
    model, _ = artifact.load(finished)
    x = torch.randn(3, 1, 8, 8)
    if to == "torch-export":
        assert_close(torch.export.load(tmp_path / "out" / "model.pt2").module()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--to", "onnx"], 2, "nowhere holds neither a run nor a saved model"),
        (["RUN", "--to", "onyx"], 2, "did you mean 'onnx'"),
        (["RUN", "--to", "state-dict", "--measure"], 2, "measured with onnxruntime"),
        (["RUN", "--to", "state-dict", "--out", "RUN"], 1, "holds other files"),
        (["RUN", "--to", "state-dict", "--out", "RUN/summary.json"], 1, "is a file; give a folder"),
    ],
)
def test_mistakes_are_one_sentence(finished, capsys, arguments, code, message):
    before = sorted(finished.iterdir())
    found, out, err = run(capsys, "export", *(a.replace("RUN", str(finished)) for a in arguments))
    assert (found, out) == (code, "")
    assert err.startswith("demp: ") and message in err and err.count("\n") == 1
    assert sorted(finished.iterdir()) == before


def test_an_operation_that_onnx_lacks_fails_in_one_sentence(finished, capsys, monkeypatch, tmp_path):
    real = artifact.load

    def load(path, **options):
        model, facts = real(path, **options)
        model.register_forward_hook(lambda module, args, out: torch.special.bessel_j0(out))
        return model, facts

    monkeypatch.setattr(artifact, "load", load)
    code, out, err = run(capsys, "export", str(finished), "--to", "onnx", "--out", str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert (
        "cannot translate the operation prims.bessel_j0 of Perceptron (No ONNX function found);" in err
        and err.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run(finished, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "config.toml", tmp_path / "run")
    with pytest.raises(demp.UsageError, match="is not finished; finish it with: demp resume"):
        demp.export(tmp_path / "run", tmp_path / "out", to="onnx")


@pytest.mark.slow
def test_the_times_of_a_run_are_in_the_card(finished, tmp_path, capsys):
    code, out, err = run(capsys, "export", str(finished), "--to", "onnx", "--measure", "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert out.count("onnxruntime at batch") == 3
    assert "| 64 |" in (tmp_path / "out" / "README.md").read_text()
