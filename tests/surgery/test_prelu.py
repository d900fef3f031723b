"""A slope per channel follows the cut, and so does what the module says of it."""

import pytest
import torch
from torch import nn

import comparing
import demp
import killing
import nets


def network(slopes: int = 6) -> nn.Module:
    front = (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.PReLU(slopes), nn.Conv2d(6, 4, 1))
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize("slopes", [6, 1])
def test_num_parameters_follows_the_cut_and_the_file(slopes: int, tmp_path):
    model, x = nets.settle(network(slopes)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"2": [0, 4]})
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, {"2": [0, 4]}, example_inputs=(x,), graph=graph).removed == 2
    kept = 4 if slopes == 6 else 1
    assert model[2].num_parameters == len(model[2].weight) == kept
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
    demp.save(model, tmp_path / "model", example_inputs=(x,))
    loaded = demp.load(lambda: network(slopes).double(), tmp_path / "model").eval()
    assert loaded[2].num_parameters == len(loaded[2].weight) == kept
    assert comparing.gap(before, comparing.outputs(loaded, (x,))) < 1e-10
