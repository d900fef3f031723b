from pathlib import Path

import pytest
from saved_net import Net, cut_net

import demp


@pytest.fixture
def saved(tmp_path) -> tuple[Net, Path]:
    model = cut_net()
    return model, demp.save(model, tmp_path / "model", builder={"name": "net", "widths": [6, 5]})
