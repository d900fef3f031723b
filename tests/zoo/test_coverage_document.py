"""docs/coverage.md is what the generator writes today."""

import pytest

from architectures import names
from features import FEATURES
from thinning import mostly_slow
from write_coverage import DOCUMENT, feature_row, model_row

MODELS = ("timm/tinynet_e", "torchvision/squeezenet1_1", "transformers/t5")
LINES = DOCUMENT.read_text().splitlines()
AGAIN = f"\n{DOCUMENT.name} is behind: run python tests/zoo/write_coverage.py"


@pytest.mark.parametrize("name", list(FEATURES)[::6])
def test_features(name):
    assert feature_row(name) in LINES, AGAIN


@pytest.mark.parametrize("name", mostly_slow(MODELS, MODELS[:2]))
def test_models(name):
    assert model_row(name) in LINES, AGAIN


def test_every_feature_and_architecture_has_its_line():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in LINES if line.startswith("| ")]
    assert [row for row in rows if row in FEATURES] == list(FEATURES)
    assert [row for row in rows if ("/" in row and "_" in row) or row in names()] == names()
