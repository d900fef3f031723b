"""Saved models: rebuilt in another process to the bit, refused when anything is off, never lost."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import forks
import nets
from demp.surgery import record_of

TESTS = Path(__file__).parent
X = (torch.randn(6, 3, 6, 6),)


class Net(nn.Module):
    """Depthwise convolution, norm, flatten, tied table, a buffer that no state dict holds."""

    def __init__(self, widths: tuple[int, int] = (6, 5), slope: float = 0.1) -> None:
        super().__init__()
        one, two = widths
        self.conv, self.norm = nn.Conv2d(3, one, 3, bias=False), nn.BatchNorm2d(one)
        self.deep, self.fc = nn.Conv2d(one, one, 3, groups=one), nn.Linear(4 * one, two)
        self.head, self.tied = nn.Linear(two, 3), nn.Linear(two, 3)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.linspace(1, 2, one).view(1, one, 1, 1), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x))) * self.scale
        x = F.leaky_relu(self.fc(F.relu(self.deep(x)).flatten(1)) - 0.7, self.slope)
        return self.head(x) + self.tied(x * x)


DEAD = {"relu": [1, 4], "relu#2": [1, 4], "leaky_relu": [0]}


def cut_net() -> Net:
    torch.manual_seed(1)
    model = nets.settle(Net()).float()
    demp.cut(model, DEAD, example_inputs=X, exact=False)
    return model


@pytest.fixture
def saved(tmp_path) -> tuple[Net, Path]:
    model = cut_net()
    return model, demp.save(model, tmp_path / "model", builder={"name": "net", "widths": [6, 5]})


def altered(path: Path, **changes) -> None:
    """Rewrite architecture.json, its own hash included."""
    from demp.artifact import content_hash

    file = path / "architecture.json"
    architecture = {**json.loads(file.read_text()), **changes}
    architecture["sha256"] = content_hash(architecture)
    file.write_text(json.dumps(architecture))


# Round trip ------------------------------------------------------------------------------------------


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
sys.path.insert(0, {str(TESTS)!r})
torch.set_num_threads(1)
from test_artifact import Net
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
    """Places of a picture's patches among the tokens: values that no seed draws."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.look, self.head = nn.Embedding(9, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        h[ids == 8] = torch.relu(self.look(picture)).flatten(0, 1)
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


# What is off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["architecture.json", "model.safetensors"])
def test_a_missing_file(saved, file):
    (saved[1] / file).unlink()
    with pytest.raises(demp.ArtifactError, match=f"{file} is missing; a saved model is a folder"):
        demp.load(Net, saved[1])


def test_a_missing_folder(tmp_path):
    with pytest.raises(demp.ArtifactError, match="nowhere.*is missing"):
        demp.load(Net, tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("file", ["architecture.json", "model.safetensors"])
def test_a_truncated_file(saved, file, share):
    path = saved[1] / file
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(demp.ArtifactError, match=f"{file} is truncated or altered"):
        demp.load(Net, saved[1])


def test_an_altered_file(saved):
    path = saved[1] / "model.safetensors"
    weights = load_file(path)
    weights["norm.bias"] += 1e-3
    save_file(weights, path)
    with pytest.raises(demp.ArtifactError, match="its hash is not the one in architecture.json"):
        demp.load(Net, saved[1])
    file = saved[1] / "architecture.json"
    file.write_text(file.read_text().replace('"class": "Net"', '"class": "Other"'))
    with pytest.raises(demp.ArtifactError, match="architecture.json was altered"):
        demp.load(Net, saved[1])


def test_weights_of_another_save(saved, tmp_path):
    other = demp.save(cut_net().double(), tmp_path / "other", example_inputs=(X[0].double(),))
    shutil.copy(other / "model.safetensors", saved[1] / "model.safetensors")
    with pytest.raises(demp.ArtifactError, match="truncated or altered"):
        demp.load(Net, saved[1])


def test_json_that_is_no_architecture(saved):
    for text in ("[]", "{}", "null", '"x"', "{"):
        (saved[1] / "architecture.json").write_text(text)
        with pytest.raises(demp.ArtifactError, match="truncated or altered"):
            demp.load(Net, saved[1])


def test_a_later_format(saved):
    altered(saved[1], format=99)
    with pytest.raises(demp.ArtifactError, match="has format 99; this demp reads up to 3: upgrade demp"):
        demp.load(Net, saved[1])


def other_net(change) -> nn.Module:
    model = Net()
    change(model)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: other_net(lambda m: setattr(m, "extra", nn.Linear(2, 2))), "differ in extra.bias, extra.weight"),
        (lambda: other_net(lambda m: setattr(m, "norm", nn.Identity())), "differ in norm"),
        (lambda: other_net(lambda m: setattr(m, "tied", nn.Linear(5, 3))), "differ in tied.weight"),
        (lambda: other_net(lambda m: setattr(m, "conv", nn.Conv3d(3, 6, 3, bias=False))), "has 5 axes in the constr"),
        (lambda: Net(slope=0.5), "outputs differ from the saved ones"),
        (lambda: nets.Forward(lambda s, x: x, **dict(Net().named_children())), "the constructor's model and the saved"),
        (lambda: other_net(lambda m: setattr(m.conv, "stride", (2, 2))), "the rebuilt model does not run"),
        (lambda: other_net(lambda m: setattr(m, "forward", lambda x: (x, x))), "returns 2 tensors, the saved one 1"),
        (
            lambda: other_net(lambda m: setattr(m, "forward", lambda x: x)),
            r"returns \[4, 3, 6, 6\] where the saved",
        ),
    ],
)
def test_another_constructor(saved, build, message):
    with pytest.raises(demp.ArtifactError, match=message):
        demp.load(build, saved[1])


def tail_of(change):
    """A constructor whose network changes the last of its 4 x 24 outputs."""

    def build() -> nn.Module:
        return nn.Sequential(nets.mlp(4, 6, 24), nets.Forward(lambda s, y: change(y.flatten()).view_as(y)))

    return build


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e3])
def test_another_value_at_the_end_is_seen(tmp_path, value):
    torch.manual_seed(0)
    build = tail_of(lambda y: y)
    demp.save(build(), tmp_path / "m", example_inputs=(torch.randn(4, 4),))
    other = tail_of(lambda y: torch.cat((y[:-3], y.new_tensor([value] * 3))))
    with pytest.raises(demp.ArtifactError, match="outputs differ from the saved ones by (inf|[1-9].*e[+])"):
        demp.load(other, tmp_path / "m")


def test_rounding_passes_and_so_do_the_same_infinities(tmp_path):
    torch.manual_seed(0)
    build = tail_of(lambda y: torch.cat((y[:-3], y.new_tensor([torch.nan, torch.inf, -torch.inf]))))
    demp.save(build(), tmp_path / "m", example_inputs=(torch.randn(4, 4),))
    rounded = tail_of(lambda y: torch.cat((y[:-3] * (1 + 1e-5), y.new_tensor([torch.nan, torch.inf, -torch.inf]))))
    demp.load(rounded, tmp_path / "m")


def test_the_probe_of_an_earlier_format(saved):
    file = saved[1] / "architecture.json"
    probe = json.loads(file.read_text())["probe"]
    for output in probe["outputs"]:
        del output["every"]
    altered(saved[1], format=2, probe={**probe, "digest": ""})
    demp.load(Net, saved[1])


def test_the_inputs_of_the_proof_come_from_its_seed(saved):
    probe = json.loads((saved[1] / "architecture.json").read_text())["probe"]
    altered(saved[1], probe={**probe, "seed": probe["seed"] + 1})
    with pytest.raises(demp.ArtifactError, match="outputs differ from the saved ones"):
        demp.load(Net, saved[1])


def test_a_constructor_that_fails_says_so_itself(saved):
    def build() -> nn.Module:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        demp.load(build, saved[1])


# Never lost ------------------------------------------------------------------------------------------


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
sys.path.insert(0, {str(TESTS)!r})
from test_artifact import Net
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
