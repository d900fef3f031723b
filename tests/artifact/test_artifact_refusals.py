"""Saved models that are not what was saved: refused, with what is off."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_net import Net, X, altered, cut_net
from torch import nn

import demp
import nets


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


def test_a_network_in_place_of_its_constructor(saved):
    with pytest.raises(demp.UsageError, match="build is a Net that is made already.*lambda: Net.*load_state_dict"):
        demp.load(Net(), saved[1])
    with pytest.raises(demp.UsageError, match="build is .*Path.*; give what makes the dense network"):
        demp.load(saved[1], Net)  # the other way round
    with pytest.raises(demp.UsageError, match="build is 'Net'; give what makes the dense network"):
        demp.load("Net", saved[1])
    with pytest.raises(demp.UsageError, match="build is a Net that is made already"):
        demp.export(cut_net(), saved[1].parent / "out", to="safetensors", example_inputs=(X[0],), build=Net())
    assert not (saved[1].parent / "out").exists()
