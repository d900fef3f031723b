"""What somebody types in the first hour: own models in the current folder, other inputs, plans and questions."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from demp.cli import main
from demp.cli.inputs import parse_inputs
from demp.errors import UsageError

NETS = """
import torch
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, num_classes))

def vector():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, ids, shift):
        return self.head(torch.relu(self.inner(self.table(ids)))) + shift
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module that no other test has, as the current one."""
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("own_nets", None)


def answer(capsys, *arguments):
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_the_installed_command_finds_a_module_of_the_current_folder(own):
    demp = Path(sysconfig.get_path("scripts")) / "demp"
    done = subprocess.run(
        [demp, "inspect", "own_nets:vector", "--input", "1,5"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "7 neurons in 1 layers; 7 removable" in done.stdout


def test_a_run_of_an_own_model_goes_on_with_trust(own, capsys):
    arguments = ["--model", "own_nets:small", "--steps", "2", "--device", "cpu", "--out", "run"]
    assert answer(capsys, "train", *arguments)["model"] == "own_nets:small"
    sys.path.remove(str(own))
    sys.modules.pop("own_nets")
    assert main(["eval", "run"]) == 2
    assert "--trust" in capsys.readouterr().err and "own_nets" not in sys.modules and str(own) not in sys.path
    assert answer(capsys, "eval", "run", "--trust", "--device", "cpu")["neurons"] <= 6


def test_inspect_takes_other_inputs_than_images(own, capsys):
    assert answer(capsys, "inspect", "own_nets:vector", "--input", "2,5")["removable"] == 7
    found = answer(capsys, "inspect", "own_nets:Tagger", "--input", "1,4:int64", "--input", "1,1,3")
    assert (found["model"], found["neurons"]) == ("Tagger", 6)
    assert answer(capsys, "inspect", "resnet18", "--input", "1,1,16,16", "--width", "0.125")["removable"] == 488
    named = ["--input", "shift=1,1,3", "--input", "ids=1,4:int64"]
    assert answer(capsys, "inspect", "own_nets:Tagger", *named)["neurons"] == 6


def test_inputs_are_zeros_of_a_size_and_a_type():
    (one,) = parse_inputs(["2, 3:int64"])
    assert torch.equal(one, torch.zeros(2, 3, dtype=torch.int64))
    assert parse_inputs(["a=1,2"])["a"].dtype == torch.float32
    for texts in (["x"], [""], ["0,3"], ["1,2:int65"], ["1,2:nn"], ["a=1", "2"]):
        with pytest.raises(UsageError, match="write for example 1,3,32,32"):
            parse_inputs(texts)


def test_a_training_says_what_it_is_about_to_do_before_the_first_step(tmp_path, capsys):
    assert main(["train", "--model", "mlp", "--steps", "3", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "no --recipe was given: a plain run; `demp recipes` lists the others" in out
    plan = out.index("trains mlp (")
    assert "on digits (1,442 images, 10 classes) with demp: 3 steps of 128, 0.266 passes over the images, on cpu" in out
    assert plan < out.index("at the dense network's pace") < out.index("step 0 of 3")


class Terminal:
    """A standard input at which somebody has typed."""

    def __init__(self, typed, *, terminal=True):
        self.typed, self.terminal, self.asked = typed, terminal, 0

    def isatty(self):
        return self.terminal

    def readline(self, *_):
        self.asked += 1
        return self.typed


def paper_run(monkeypatch, tmp_path, stdin, *more):
    """Two steps that count as the length of the paper; the code, and how often something was asked."""
    from demp.train import forecast

    monkeypatch.setattr(forecast, "PUBLISHED", {"digits": (2, 1)})
    monkeypatch.setattr(sys, "stdin", stdin)
    arguments = [
        "--recipe",
        "digits",
        "--model",
        "mlp",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    return main(["train", *arguments, *more]), stdin.asked


def test_a_run_as_long_as_the_papers_is_asked_about_in_a_terminal(monkeypatch, tmp_path, capsys):
    assert paper_run(monkeypatch, tmp_path, Terminal("n\n")) == (2, 1)
    out, err = capsys.readouterr()
    assert "digits runs for as long as in the paper (--steps makes it shorter). Begin? [y/N]" in out
    assert "nothing was trained; give --steps" in err and not (tmp_path / "run").exists()
    assert paper_run(monkeypatch, tmp_path, Terminal("y\n")) == (0, 1)


@pytest.mark.parametrize(("terminal", "more"), [(False, []), (True, ["--yes"])])
def test_nothing_is_asked_without_a_terminal_or_with_yes(monkeypatch, tmp_path, terminal, more):
    assert paper_run(monkeypatch, tmp_path, Terminal("n\n", terminal=terminal), *more) == (0, 0)


def test_the_forecast_leaves_the_run_as_it_was():
    from demp import recipes
    from demp.train.forecast import forecast
    from demp.train.run import Run, digest

    run = Run(recipes.get("digits", steps=4).merged({"model": {"name": "mlp"}, "device": "cpu"}))
    weights, random = digest(run.model), torch.get_rng_state()
    plan = forecast(run)
    assert plan.seconds == plan.step_seconds * 4 > 0 and not plan.paper_scale
    assert digest(run.model) == weights and torch.equal(torch.get_rng_state(), random) and run.step == 0


@pytest.mark.parametrize("arguments", [["--version"], ["compare", "--help"], ["recipes", "--json"]])
def test_a_reader_that_leaves_is_told_nothing(arguments):
    reader, writer = os.pipe()
    os.close(reader)  # as `demp ... | head` does when it has read enough
    try:
        command = [sys.executable, "-m", "demp", *arguments]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert ended.returncode == 141
    assert "demp:" not in ended.stderr and "Traceback" not in ended.stderr
