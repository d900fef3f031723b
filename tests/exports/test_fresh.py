"""A stranger's process: each file loads without the process that wrote it, and graphs without demp."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import demp
from leaving import MODELS, small

TESTS = Path(__file__).parents[1]
ASKED = (1, 4, 9)
"""Batch sizes that the fresh process is asked for."""

BEGIN = """
import sys
from safetensors.torch import load_file, save_file
folder, asked, answered = sys.argv[1:]
questions = load_file(asked)
"""
END = """
save_file({name: answer(x) for name, x in questions.items()}, answered)
"""
TORCH_EXPORT = """
import torch
program = torch.export.load(f"{folder}/model.pt2").module()
assert not [name for name in sys.modules if name.split(".")[0] in ("demp", "transformers")]
def answer(x):
    with torch.no_grad():
        output = program(x)
    return output["logits"] if isinstance(output, dict) else output
"""
ONNX = """
import numpy, onnxruntime, torch
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
assert not [name for name in sys.modules if name.split(".")[0] in ("demp", "transformers", "onnx")]
(name,) = [entry.name for entry in session.get_inputs()]
def answer(x):
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])
"""
BUILD = f"""
sys.path.insert(0, {str(TESTS)!r})
import torch
from leaving import MODELS
build, _ = MODELS[{{name!r}}]
def answer(x):
    with torch.no_grad():
        output = model.eval()(x)
    return output if isinstance(output, torch.Tensor) else output.logits
"""
LOAD = "import demp\nmodel = demp.load(build, folder)\n"
PRETRAINED = """
from transformers import AutoModelForSequenceClassification
assert "demp" not in sys.modules
model = AutoModelForSequenceClassification.from_pretrained(folder)
"""
SHIM = f"""
sys.path.insert(0, {str(TESTS)!r})
from shim import install_torchvision_shim
install_torchvision_shim()
"""
STATE = """
import demp
state = torch.load(f"{folder}/model.pt", weights_only=True)
model = build()
for name, value in state.items():
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    value = torch.nn.Parameter(value) if leaf in module._parameters else value
    setattr(module, leaf, value)
    if leaf in ("weight",) and isinstance(module, torch.nn.BatchNorm2d):
        module.num_features = len(value)
"""


def script(name, to):
    if to in ("torch-export", "onnx"):
        return {"torch-export": TORCH_EXPORT, "onnx": ONNX}[to]
    if to == "state-dict":
        return BUILD.format(name=name) + STATE
    return BUILD.format(name=name) + LOAD if name == "resnet18" else SHIM + PRETRAINED + ANSWER


ANSWER = """
import torch
def answer(x):
    with torch.no_grad():
        return model.eval()(x).logits
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("to", ["torch-export", "onnx", "safetensors", "state-dict"])
def test_a_fresh_process_gives_the_same_answers(name, to, tmp_path):
    model, inputs = small(name)
    demp.export(model, tmp_path / "out", to=to, example_inputs=inputs)
    questions = {str(count): MODELS[name][1](count) for count in ASKED}
    save_file(questions, tmp_path / "asked.safetensors")
    files = [str(tmp_path / each) for each in ("out", "asked.safetensors", "answered.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script(name, to) + END, *files], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    answers = load_file(files[2])
    for count, x in questions.items():
        with torch.no_grad():
            wanted = model.eval()(x)
        assert_close(answers[count], wanted if isinstance(wanted, torch.Tensor) else wanted.logits)
