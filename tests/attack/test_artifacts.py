"""Two hundred saved models that someone has tampered with: loaded, or refused in one sentence."""

import resource

import pytest

import hostile
from demp.artifact import folder as artifact
from demp.errors import DempError
from demp.train import artifact as trained
from demp.train.models import build

pytestmark = pytest.mark.slow
DENSE = {"num_classes": 10, "in_channels": 1, "image_size": 8, "hidden": (16, 12)}


def by_hand(folder):
    return artifact.load(lambda: build("mlp", **DENSE), folder)


@pytest.mark.parametrize("seed", range(4))
def test_fifty_mutants(tmp_path, seed):
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for name, architecture in hostile.mutants(50, seed=100 + seed):
        folder = hostile.write(tmp_path / "m", architecture)
        for way in (trained.load, by_hand):
            try:
                way(folder)
            except DempError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 700, name
    assert refused > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.parametrize("name", ["architecture.json", "model.safetensors"])
def test_a_bit_flipped_anywhere(tmp_path, name):
    whole = hostile.write(tmp_path / "m", __import__("json").loads((hostile.OLD / "architecture.json").read_text()))
    data = (whole / name).read_bytes()
    for byte in range(0, len(data), max(1, len(data) // 100)):
        bad = bytearray(data)
        bad[byte] ^= 1 << byte % 8
        (whole / name).write_bytes(bad)
        with pytest.raises(DempError) as error:
            by_hand(whole)
        assert "\n" not in str(error.value)
