"""Every format, read back by the package that it is for; what cannot be exported leaves nothing behind."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import demp
from demp.exports import onnx_file
from demp.exports.agreement import proven
from demp.exports.examples import answers
from demp.exports.export import CARD, REPORT
from demp.exports.formats import FORMATS, Subject
from demp.graph.joins import model_joins
from demp.train import models
from leaving import small as small_resnet
from runs import IMAGE, PlainNet, build, examples, kill, same

FILES = {
    "torch-export": "model.pt2",
    "onnx": "model.onnx",
    "safetensors": "model.safetensors",
    "state-dict": "model.pt",
}


def make() -> PlainNet:
    return build(PlainNet, dtype=torch.float32)


@pytest.fixture(scope="module")
def small() -> PlainNet:
    """A network that lost neurons for real."""
    model = make()
    kill(model.norm1, [0, 5])
    kill(model.norm2, [1])
    inputs = examples(IMAGE, dtype=torch.float32)
    dead = {"act1": [0, 5], "act2": [1]}
    assert demp.cut(model, dead, example_inputs=(inputs,)).removed == 3
    return model.train()


@pytest.fixture
def x() -> torch.Tensor:
    return examples(IMAGE, n=3, seed=7, dtype=torch.float32)


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """One export per format: folder and report."""
    inputs = examples(IMAGE, n=6, seed=3, dtype=torch.float32)
    root, found = tmp_path_factory.mktemp("exports"), {}
    for to in FILES:
        found[to] = (root / to, demp.export(small, root / to, to=to, example_inputs=(inputs,), build=make))
    return found


def outputs(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(*inputs)


def nothing_but(folder: Path, *names: str) -> bool:
    return {path.name for path in folder.iterdir()} == set(names)


# What is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FILES)
def test_report_card_and_files(exported, small, to):
    folder, report = exported[to]
    assert (report.to, report.path, report.file, report.model) == (to, str(folder), FILES[to], "PlainNet")
    assert report.bytes == (folder / FILES[to]).stat().st_size
    assert report.difference <= report.tolerance == 1e-4
    assert (report.batch_sizes, report.examples) == ((1, 2, 5, 16), 6)
    dense = make()
    assert (report.neurons, report.neurons_dense) == (15, 18)
    assert report.parameters == sum(p.numel() for p in small.parameters())
    assert report.parameters_dense == sum(p.numel() for p in dense.parameters())
    assert report.flops == demp.cost(small, examples(IMAGE, n=1, dtype=torch.float32)).flops
    assert report.flops_dense == demp.cost(dense, examples(IMAGE, n=1, dtype=torch.float32)).flops
    assert json.loads((folder / REPORT).read_text()) == json.loads(json.dumps(report.to_dict()))
    spec = ["architecture.json"] if to == "safetensors" else []
    assert nothing_but(folder, FILES[to], REPORT, CARD, *spec)
    assert nothing_but(folder.parent, *FILES)


@pytest.mark.parametrize("to", FILES)
def test_the_model_is_as_it_was(small, x, tmp_path, to, monkeypatch):
    monkeypatch.setattr(onnx_file, "write", lambda *_: None)  # it sees only the graph, and takes seconds
    monkeypatch.setattr(onnx_file, "answer", lambda model, file: lambda inputs: answers(model, inputs))
    before = copy.deepcopy(small)
    state = torch.get_rng_state()
    written = FORMATS[to].write(Subject(small, (x,), build=make), tmp_path)
    proven(small, written.answer, (x,), to)
    assert same(small, before)
    assert small.training and all(p.requires_grad for p in small.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_torch_export_takes_any_batch(exported, small, batch):
    folder, _ = exported["torch-export"]
    inputs = examples(IMAGE, n=batch, seed=11, dtype=torch.float32)
    found = torch.export.load(folder / "model.pt2").module()(inputs)
    assert_close(found, outputs(small, inputs))


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_onnx_takes_any_batch_under_the_names_of_the_forward(exported, small, batch):
    folder, _ = exported["onnx"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["x"]
    assert [entry.name for entry in session.get_outputs()] == ["output"]
    inputs = examples(IMAGE, n=batch, seed=11, dtype=torch.float32)
    (found,) = session.run(None, {"x": inputs.numpy()})
    assert isinstance(found, np.ndarray)
    assert_close(torch.from_numpy(found), outputs(small, inputs))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("to", ["torch-export", "state-dict"])
def test_a_compiled_model_leaves_as_its_original(small, x, tmp_path, to, in_place):
    model = copy.deepcopy(small)
    if in_place:
        model.compile(backend="eager")
    report = demp.export(
        model if in_place else torch.compile(model, backend="eager"), tmp_path / "out", to=to, example_inputs=(x,)
    )
    assert report.model == "PlainNet"
    if to == "state-dict":
        assert torch.load(tmp_path / "out" / "model.pt", weights_only=True).keys() == small.state_dict().keys()
    else:
        assert_close(torch.export.load(tmp_path / "out" / "model.pt2").module()(x), outputs(small, x))


def test_state_dict_is_a_plain_dict(exported, small):
    folder, report = exported["state-dict"]
    state = torch.load(folder / "model.pt", weights_only=True)
    assert type(state) is dict
    assert state.keys() == small.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())
    assert report.loads_with == "torch.load" and "shapes of the cut network" in report.notes[0]


def test_a_state_dict_of_a_network_with_joins_says_what_it_leaves_out(tmp_path):
    model, inputs = small_resnet("resnet18")
    sums = sum(len(plans) for plans in model_joins(model).values())
    report = demp.export(model, tmp_path / "out", to="state-dict", example_inputs=inputs)
    assert report.notes[1].endswith(f"only --to safetensors or a graph keeps: {sums}")


def test_safetensors_is_plain_weights_and_loads_with_the_constructor(exported, small, x):
    folder, report = exported["safetensors"]
    assert report.loads_with == "demp.load"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "class": "PlainNet", "producer": f"demp {demp.__version__}"}
    assert load_file(folder / "model.safetensors").keys() == small.state_dict().keys()
    loaded = demp.load(make, folder)
    assert same(loaded, small)
    assert_close(outputs(loaded, x), outputs(small, x))


def test_an_earlier_export_of_the_same_kind_is_replaced_and_nothing_else(small, x, tmp_path):
    out = tmp_path / "out"
    demp.export(small, out, to="state-dict", example_inputs=(x,))
    demp.export(small, out, to="state-dict", example_inputs=(x,))
    assert nothing_but(out, "model.pt", REPORT, CARD)
    with pytest.raises(demp.ArtifactError, match=r"holds other files \(model.pt\)"):
        demp.export(small, out, to="safetensors", example_inputs=(x,))
    assert nothing_but(out, "model.pt", REPORT, CARD)
    assert nothing_but(tmp_path, "out")


class Forms(nn.Module):
    """Takes several inputs, one without a batch; returns tensors and other things in a nest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, a, *, scale, b=None):
        hidden = self.act(self.first(a))
        y = self.second(hidden) * scale
        return {"logits": y if b is None else y + b, "parts": [hidden, hidden.sum(1)], "name": "forms", "none": None}


@pytest.mark.parametrize("to", ["torch-export", "onnx"])
def test_inputs_and_outputs_of_other_forms(tmp_path, to):
    model, inputs = Forms(), {"a": torch.randn(4, 6), "scale": torch.tensor([[2.0, 3.0]]), "b": torch.randn(4, 2)}
    report = demp.export(model, tmp_path / "out", to=to, example_inputs=inputs)
    assert report.notes == ("left out of the outputs: name (str)",)
    if to == "torch-export":
        found = torch.export.load(tmp_path / "out" / report.file).module()(**inputs)
        assert found.keys() == {"logits", "parts"}
        assert_close(found["logits"], model(**inputs)["logits"])
    else:
        session = onnxruntime.InferenceSession(tmp_path / "out" / report.file)
        assert [entry.name for entry in session.get_inputs()] == ["a", "scale", "b"]
        assert [entry.name for entry in session.get_outputs()] == ["logits", "parts_0", "parts_1"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_b_16", {"patch": 8, "depth": 1}),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("mlp", "resnet18", "vgg16", "resnet50")),
    ],
)
def test_the_built_in_models_take_any_batch(name, options, tmp_path):
    model = models.build(name, num_classes=3, image_size=32, width=0.0625, **options).eval()
    x = torch.randn(3, 3, 32, 32)
    demp.export(model, tmp_path / "out", to="torch-export", example_inputs=(x,))
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(x[:1])
    assert_close(found, outputs(model, x[:1]))


# What cannot be exported --------------------------------------------------------------------------------


class Tail(nn.Module):
    """A small network whose last operation is given."""

    def __init__(self, tail) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2, self.tail = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), tail

    def forward(self, x):
        return self.tail(self.fc2(self.act(self.fc1(x))))


def refused(tmp_path: Path, tail, to: str, match: str) -> None:
    with pytest.raises(demp.ExportError, match=match):
        demp.export(Tail(tail), tmp_path / "out", to=to, example_inputs=(torch.randn(4, 6),))
    assert nothing_but(tmp_path)


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    name = r"the operation prims\.bessel_j0 of Tail"
    refused(tmp_path, torch.special.bessel_j0, "onnx", f"the ONNX exporter cannot translate {name}")


def test_types_that_onnxruntime_lacks_are_named(tmp_path):
    net, x = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(), nn.Conv1d(2, 1, 1)).double(), torch.randn(4, 2, 3).double()
    with pytest.raises(demp.ExportError, match="onnxruntime cannot run Sequential: it has no Conv for these types"):
        demp.export(net, tmp_path / "out", to="onnx", example_inputs=(x,))
    assert nothing_but(tmp_path)


def test_a_forward_that_depends_on_values(tmp_path, capfd):
    refused(tmp_path, lambda y: y if y.sum() > 0 else -y, "torch-export", "torch.export cannot follow Tail: Could not")
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_size(tmp_path):
    refused(tmp_path, lambda y: y.view(2, 4) + 0, "torch-export", "Tail fixes its batch size in its forward")
    refused(tmp_path, lambda y: y.expand(len(y), -1), "onnx", r"x\.shape\[0\] where it says len\(x\)")


@pytest.mark.parametrize("to", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, to):
    refused(tmp_path, lambda y: y * (1 + random.random()), to, r"model\.\w+ differs from the model on a batch of 1 by")


def test_a_constructor_that_builds_another_network(small, x, tmp_path):
    class Other(PlainNet):
        def forward(self, x):
            return super().forward(x) + 1

    def other() -> PlainNet:
        return build(Other, dtype=torch.float32)

    with pytest.raises(demp.ArtifactError, match="the constructor builds another network"):
        demp.export(small, tmp_path / "out", to="safetensors", example_inputs=(x,), build=other)
    assert nothing_but(tmp_path)


def test_no_tensor_comes_out(tmp_path):
    refused(tmp_path, lambda y: "done", "state-dict", "Tail returns no tensor")


def test_a_state_that_is_no_tensor(tmp_path):
    class Extra(Tail):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            pass

    for to in ("state-dict", "safetensors"):
        with pytest.raises(demp.ExportError, match="_extra_state in the state of Extra is a dict, not a tensor"):
            demp.export(Extra(nn.Identity()), tmp_path / "out", to=to, example_inputs=(torch.randn(4, 6),))
    assert nothing_but(tmp_path)


def test_a_file_that_was_written_wrong_is_not_kept(small, x, tmp_path, monkeypatch):
    real = torch.save

    def spoiled(state, file):
        real({**state, "head.bias": state["head.bias"] + 1}, file)

    monkeypatch.setattr(torch, "save", spoiled)
    with pytest.raises(demp.ExportError, match=r"model\.pt: head\.bias did not come back as it was written"):
        demp.export(small, tmp_path / "out", to="state-dict", example_inputs=(x,))
    assert nothing_but(tmp_path)


def test_an_export_that_fails_leaves_the_earlier_one(small, x, tmp_path, monkeypatch):
    out = tmp_path / "out"
    demp.export(small, out, to="state-dict", example_inputs=(x,))
    before = (out / "model.pt").read_bytes()
    monkeypatch.setattr(
        torch, "save", lambda state, file: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(demp.DempError, match="No space left on device"):
        demp.export(small, out, to="state-dict", example_inputs=(x,))
    assert (out / "model.pt").read_bytes() == before
    assert nothing_but(tmp_path, "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "onyx"}, "cannot export to 'onyx'; choose one of .*; did you mean 'onnx'"),
        ({"example_inputs": None}, "give example_inputs, a batch of real inputs"),
        ({"example_inputs": (3,)}, "no tensor with a batch axis"),
        ({"example_inputs": (torch.zeros(0, *IMAGE),)}, "no tensor with a batch axis"),
        ({"measure": True}, "times are measured with onnxruntime"),
        ({"measure": True, "to": "onnx"}, "give build, the model's constructor"),
        ({"model_or_run": nn.DataParallel(PlainNet())}, r"wrapped in DataParallel, which copies it"),
        ({"model_or_run": PlainNet().to("meta")}, r"PlainNet is on meta; export it from the CPU: model\.cpu\(\)"),
        ({"model_or_run": "nowhere"}, "leave example_inputs and build out"),
        ({"model_or_run": "nowhere", "example_inputs": None}, "nowhere holds neither a run nor a saved model"),
    ],
)
def test_arguments_that_do_not_fit(small, x, tmp_path, changes, message):
    arguments = {"model_or_run": small, "to": "state-dict", "example_inputs": (x,)} | changes
    model = arguments.pop("model_or_run")
    with pytest.raises(demp.UsageError, match=message):
        demp.export(model, tmp_path / "out", **arguments)
    assert nothing_but(tmp_path)


def test_a_missing_package_is_one_sentence(small, x, tmp_path, monkeypatch):
    def absent(module: str, extra: str):
        raise demp.UsageError(f"this needs the package {module}; install it with: pip install 'demp[{extra}]'")

    monkeypatch.setattr(onnx_file, "need", absent)
    with pytest.raises(demp.UsageError, match=r"needs the package onnx; install it with: pip install 'demp\[export\]'"):
        demp.export(small, tmp_path / "out", to="onnx", example_inputs=(x,))
    assert nothing_but(tmp_path)


# Times --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_times_beside_the_dense_network(small, x, tmp_path, monkeypatch):
    from demp.exports import timing

    monkeypatch.setattr(timing, "PAIRS", 3)
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    report = demp.export(small, tmp_path / "out", to="onnx", example_inputs=(x,), build=make, measure=True)
    assert [(t.batch, t.pairs) for t in report.timings] == [(1, 3), (8, 3), (64, 3)]
    for t in report.timings:
        assert t.latency_ratio * t.throughput_ratio == pytest.approx(1)
        assert min(t.latency_ms, t.dense_latency_ms) > 0
    assert "| 64 |" in (tmp_path / "out" / CARD).read_text()
    assert nothing_but(tmp_path / "out", "model.onnx", REPORT, CARD)
