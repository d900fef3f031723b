"""Saved models: rebuilt in another process to the bit, whatever they hold and return."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saved_net import Net, X, altered
from torch import nn

import comparing
import demp
import nets
from demp.surgery import record_of

HERE = Path(__file__).parent


def test_the_cut_model_comes_back_to_the_bit(saved):
    model, path = saved
    loaded = demp.load(Net, path)
    assert torch.equal(loaded.eval()(X[0]), model.eval()(X[0]))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(loaded.scale, model.scale) and loaded.scale.shape == (1, 4, 1, 1)
    assert loaded.tied.weight is loaded.head.weight
    assert (loaded.deep.groups, loaded.deep.in_channels, loaded.fc.in_features) == (4, 4, 16)
    assert [p.requires_grad for p in loaded.parameters()] == [True] * len(list(loaded.parameters()))
    was, now = record_of(model), record_of(loaded)
    assert was.kept.keys() == now.kept.keys() and all(torch.equal(was.kept[key], now.kept[key]) for key in was.kept)
    assert {k: v for k, v in vars(was).items() if k != "kept"} == {k: v for k, v in vars(now).items() if k != "kept"}
    assert demp.cost(loaded, X) == demp.cost(model, X)


def test_a_loaded_model_trains_and_is_cut_again(saved):
    path = saved[1]
    loaded = demp.load(Net, path).train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.01, momentum=0.9)
    loaded(X[0]).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    demp.cut(loaded, {"leaky_relu": [0]}, example_inputs=X, optimizer=optimizer, exact=False)
    assert record_of(loaded).kept["fc.weight", 0].tolist() == [2, 3, 4]
    again = demp.load(Net, demp.save(loaded, path))
    assert torch.equal(again.eval()(X[0]), loaded.eval()(X[0]))


def test_a_fresh_process_gets_the_same_outputs(saved, tmp_path):
    model, path = saved
    torch.save({"x": X[0]}, tmp_path / "x.pt")
    code = f"""
import sys, torch, demp
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
torch.set_num_threads(1)
from saved_net import Net
model = demp.load(Net, {str(path)!r}).eval()
x = torch.load({str(tmp_path / "x.pt")!r})["x"]
with torch.no_grad():
    torch.save(model(x), {str(tmp_path / "y.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt"), model.eval()(X[0]))


def test_a_dense_model_and_other_types(tmp_path):
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model, inputs = nets.mlp(4, 6, 3).to(dtype), (torch.randn(2, 4, dtype=dtype),)
        demp.save(model, tmp_path / "m", example_inputs=inputs)
        loaded = demp.load(lambda: nets.mlp(4, 6, 3), tmp_path / "m")
        assert {p.dtype for p in loaded.parameters()} == {dtype} and record_of(loaded) is None
        assert comparing.same_state(comparing.state(model), loaded)


def test_without_known_inputs_there_is_no_probe(tmp_path):
    model = nets.mlp(4, 6, 3)
    demp.save(model, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "architecture.json").read_text())["probe"] is None
    assert comparing.same_state(comparing.state(model), demp.load(lambda: nets.mlp(4, 6, 3), tmp_path / "m"))


@pytest.mark.parametrize(
    "out",
    [lambda y: y.sum(), lambda y: (y, y.argmax(1)), lambda y: {"y": [y]}, lambda y: y > 0],
    ids=["a number", "with labels", "nested", "booleans"],
)
def test_outputs_of_any_form_prove_the_model(tmp_path, out):
    def build() -> nn.Module:
        return nn.Sequential(nets.mlp(4, 6, 3), nets.Forward(lambda s, y: out(y)))

    model, inputs = build(), (torch.randn(9, 4),)
    demp.save(model, tmp_path / "m", example_inputs=inputs)
    loaded = demp.load(build, tmp_path / "m")
    assert comparing.gap(comparing.outputs(model, inputs), comparing.outputs(loaded, inputs)) == 0.0


class Graph(nn.Module):
    """Nodes, edges and weights of edges: inputs that share no axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        def neighbours(h: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(h).index_add(0, edges[0], h[edges[1]] * weight[:, None])

        return neighbours(self.b(torch.relu(neighbours(self.a(x)))))


@pytest.mark.parametrize("given", [False, True])
def test_inputs_that_share_no_axis_are_drawn_whole(tmp_path, given):
    model, inputs = nets.settle(Graph()).float(), (torch.randn(7, 6), torch.randint(0, 7, (2, 10)), torch.rand(10))
    demp.cut(model, {"relu": [0, 5]}, example_inputs=inputs, exact=False)
    path = demp.save(model, tmp_path / "m", example_inputs=inputs if given else None)
    assert json.loads((path / "architecture.json").read_text())["probe"]["whole"] is True
    assert torch.equal(demp.load(Graph, path)(*inputs), model(*inputs))
    altered(path, probe={**json.loads((path / "architecture.json").read_text())["probe"], "whole": 1})
    with pytest.raises(demp.ArtifactError, match="the probe does not say whether its inputs are whole"):
        demp.load(Graph, path)


class Patches(nn.Module):
    """Places of an image's patches among the tokens: values that no seed draws."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.look, self.head = nn.Embedding(9, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        h[ids == 8] = torch.relu(self.look(image)).flatten(0, 1)
        return self.head(h)


def test_a_model_that_runs_on_no_drawn_inputs_is_saved_without_a_proof(tmp_path, caplog):
    inputs = (torch.tensor([[1, 8, 8], [8, 8, 3]]), torch.randn(2, 2, 5))
    model = Patches()
    path = demp.save(model, tmp_path / "m", example_inputs=inputs)
    assert "saved without a proof of its outputs" in caplog.text
    assert json.loads((path / "architecture.json").read_text())["probe"] is None
    assert torch.equal(demp.load(Patches, path)(*inputs), model(*inputs))


def test_a_constructor_that_needs_values_is_run_for_real(tmp_path):
    def build() -> nn.Module:
        model = nets.mlp(4, 6, 3)
        assert float(model[0].weight.detach().abs().sum()) > 0
        return model

    model = build()
    demp.save(model, tmp_path / "m", example_inputs=(torch.randn(2, 4),))
    assert comparing.same_state(comparing.state(model), demp.load(build, tmp_path / "m"))


def test_buffers_that_share_memory(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            both = torch.arange(8.0).view(2, 4)
            self.register_buffer("a", both[0])
            self.register_buffer("b", both[1])
            self.register_buffer("c", torch.arange(4).expand(3, 4))
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x + self.a * self.b)

    model, inputs = Shared(), (torch.randn(2, 4),)
    loaded = demp.load(Shared, demp.save(model, tmp_path / "m", example_inputs=inputs))
    assert comparing.same_state(comparing.state(model), loaded) and torch.equal(loaded(*inputs), model(*inputs))


def test_saving_changes_nothing(saved):
    model, path = saved
    model.train()
    before, random_state = comparing.state(model), torch.get_rng_state()
    demp.save(model, path)
    assert model.training and comparing.same_state(before, model) and torch.equal(random_state, torch.get_rng_state())


def test_there_is_no_pickle_in_it(saved):
    _, path = saved
    assert sorted(file.name for file in path.iterdir()) == ["architecture.json", "model.safetensors"]
    architecture = json.loads((path / "architecture.json").read_text())
    assert architecture["builder"] == {"name": "net", "widths": [6, 5]}
    assert architecture["aliases"] == {"tied.weight": "head.weight"}
    assert architecture["record"]["kept"]["conv.weight|0"] == [0, 2, 3, 5]
    assert set(load_file(path / "model.safetensors")) == set(architecture["tensors"])
    source = Path(demp.artifact.folder.__file__).read_text()
    assert not re.search(r"import pickle|torch\.(load|save)\(", source)
