"""Whatever a saved folder says, it is loaded or refused in one sentence, and asks for no more memory than it has."""

import json
import os
import struct

import pytest
import torch

import hostile
from demp.artifact import folder as artifact
from demp.artifact.architecture import read_architecture
from demp.errors import ArtifactError, DempError, UsageError
from demp.train import artifact as trained
from demp.train.models import build

DENSE = {"num_classes": 10, "in_channels": 1, "image_size": 8, "hidden": (16, 12)}


@pytest.fixture
def architecture():
    return json.loads((hostile.OLD / "architecture.json").read_text())


def by_hand(folder):
    """The model in the folder, by a constructor that the reader names."""
    return artifact.load(lambda: build("mlp", **DENSE), folder)


def refused(folder) -> str:
    """What both ways of loading say of it."""
    with pytest.raises(DempError) as by_builder:
        trained.load(folder)
    with pytest.raises(ArtifactError) as error:
        by_hand(folder)
    said = str(error.value)
    assert "\n" not in said and "\n" not in str(by_builder.value) and len(said) < 600
    return said


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (("modules", "fc1", "out_features"), -1, "out_features of 'fc1' is -1, and no size"),
        (("modules", "fc1", "out_features"), 13, "saved as 13, and its weight has 14"),
        (
            ("modules", "fc1", "out_features"),
            99,
            "out_features of fc1 is 16 in the constructor's model, saved as 99",
        ),
        (("modules", "fc1"), {"forward": 3}, "it sets 'forward' of 'fc1', which no cut sets"),
        (("modules", "fc1"), {"training": 1}, "it sets 'training' of 'fc1', which no cut sets"),
        (("modules", "fc1"), {"groups": 1}, "groups of fc1 is None in the constructor's model"),
        (("modules",), {"fc9": {"groups": 1}}, "has no module 'fc9'"),
        (("modules",), 3, "modules is no object"),
        (("tensors", "fc1.weight", "shape"), [2**40, 64], "fc1.weight|0 keeps another number"),
        (("tensors", "fc1.weight", "dtype"), "float64", "it has 4,704 bytes, and its tensors"),
        (("tensors", "fc1.weight", "dtype"), "load", "fc1.weight has an unknown type"),
        (
            ("probe", "inputs", "args", 0, "shape"),
            [4, 2**30],
            "its inputs have 4,294,967,296 values, too many for these",
        ),
        (("probe", "inputs", "args", 0, "dtype"), "nn", "an input has an unknown type"),
        (("probe", "inputs", "args", 0, "dtype"), "float32", ""),
        (("probe", "outputs", 0, "values"), [1.0], "an output has another number of values"),
        (("probe", "seed"), 2**64, "the seed of the probe is none"),
        (("record", "kept", "fc1.weight|0"), [0, 99], "fc1.weight|0 keeps what was never there"),
        (("record", "kept", "fc1.weight|0"), [0, 0], "keeps an entry twice"),
        (("record", "kept", "fc1.weight|0"), [0, 1], "keeps another number"),
        (("record", "kept", "fc1.weight|9"), [0], "is no axis of a dense tensor"),
        (("record", "extra"), 1, "the record has other parts than a record"),
        (("record", "dense_shapes", "fc1.weight"), [2**50, 2], "the dense shape of fc1.weight is no list of sizes"),
        (
            ("joins",),
            {"fc1": {"0": {"stream": 0, "axis": 1, "widths": [2**40, 1], "runs": []}}},
            "wider than any tensor",
        ),
        (("joins",), {"fc1": {"x": {}}}, "the join 'x' of 'fc1' is no number"),
        (("joins",), {"fc1": {"0": {"stream": 0, "axis": 1, "widths": [4, 4], "runs": [[0, 3, 2]]}}}, "do not fit its"),
        (
            ("joins",),
            {"fc1": {"0": {"stream": 0, "axis": 1, "widths": [4, 4], "runs": [], "sums": -1}}},
            "number of sums",
        ),
        (("aliases",), {"head.bias": "fc1.bias"}, "differ in head.bias"),
        (("format",), "3", "has format '3', which is none"),
        (("format",), 0, "has format '0', which is none"),
    ],
)
def test_each_part_has_a_form(tmp_path, architecture, at, change, message):
    folder = hostile.write(tmp_path / "m", hostile.changed(architecture, at, change))
    if message:
        assert message in refused(folder)
    else:
        trained.load(folder)


@pytest.mark.parametrize("name", ["tensors", "aliases", "modules", "record", "probe", "weights_sha256"])
def test_each_part_must_be_there(tmp_path, architecture, name):
    assert f"{name} is missing" in refused(hostile.write(tmp_path / "m", hostile.changed(architecture, (name,), ...)))


def test_forty_mutants_are_loaded_or_refused_in_one_sentence(tmp_path):
    outcomes = []
    for name, architecture in hostile.mutants(40):
        folder = hostile.write(tmp_path / "m", architecture)
        for way in (trained.load, by_hand):
            try:
                outcomes.append(bool(way(folder)))
            except DempError as error:
                assert "\n" not in str(error) and len(str(error)) < 700, name
                outcomes.append(False)
    assert outcomes.count(False) > 20


def test_a_sparse_file_is_refused_by_its_size(tmp_path, architecture):
    folder = hostile.write(tmp_path / "m", architecture)
    os.truncate(folder / "model.safetensors", 100 * 2**30)
    assert "it has 107,374,182,400 bytes, and its tensors 4," in refused(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert "it has no header" in refused(folder)
    os.truncate(folder / "architecture.json", 100 * 2**30)
    assert "has more than 256 MB" in refused(folder)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"x": 3}', b'{"x": {"shape": [1]}}', b"\xff\xfe", b"null", b"[" * 100_000]
)
def test_a_header_that_is_none(tmp_path, architecture, header):
    folder = hostile.write(tmp_path / "m", architecture)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "header" in refused(folder)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + header)
    assert "it has no header" in refused(folder)


@pytest.mark.parametrize("text", [b"\xff", b"[" * 100_000, b'{"sha256": ' + b"9" * 5000 + b"}", b'{"a": 1}', b""])
def test_text_that_is_no_json(tmp_path, architecture, text):
    folder = hostile.write(tmp_path / "m", architecture)
    (folder / "architecture.json").write_bytes(text)
    assert "is truncated or altered" in refused(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 10**6), ("image_size", "8"), ("channels", -1), ("mean", 3), ("extra", 3), ("num_classes", 0)],
)
def test_images_that_are_none(tmp_path, architecture, name, value):
    folder = hostile.write(tmp_path / "m", hostile.changed(architecture, ("builder", "data", name), value))
    with pytest.raises(ArtifactError, match="says? (what|that) its images are"):
        trained.load(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("width", 1e300), ("width", -1), ("hidden", [10**12, 10**12]), ("depth", 3)]
)
def test_a_network_that_cannot_be_built(tmp_path, architecture, name, value):
    folder = hostile.write(tmp_path / "m", hostile.changed(architecture, ("builder", "model", name), value))
    with pytest.raises((ArtifactError, UsageError)) as error:
        trained.load(folder)
    assert "\n" not in str(error.value)


def test_a_proof_that_would_be_too_large_is_not_saved(tmp_path, caplog):
    model = torch.nn.Sequential(torch.nn.Flatten(0), torch.nn.Threshold(0.0, 0.0))
    model.register_buffer("x", torch.zeros(3))
    artifact.save(model, tmp_path / "m", example_inputs=(torch.zeros(1).expand(4, 2**25),))
    assert "more than a proof may draw" in caplog.text and read_architecture(tmp_path / "m")["probe"] is None
