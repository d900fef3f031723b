"""One value per neuron, whatever the order of memory."""

import math

import pytest
import torch
from torch import Tensor

from demp.activity.criteria import Peaks
from demp.activity.reductions import zeros


def layouts(values: Tensor) -> dict[str, Tensor]:
    """Equal values of shape (4, 6, 3, 5) in memory of several orders."""
    wide = torch.full((4, 9, 3, 5), 100.0)
    wide[:, 1:7] = values
    return {
        "as written": values.contiguous(),
        "channels last": values.contiguous(memory_format=torch.channels_last),
        "neurons outermost": values.transpose(0, 1).contiguous().transpose(0, 1),
        "batch innermost": values.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "part of a wider one": wide[:, 1:7],
        "part of a wider one, channels last": wide.contiguous(memory_format=torch.channels_last)[:, 1:7],
        "every other": values.repeat_interleave(2, 0)[::2],
        "one example for all": values[:1].expand(4, 6, 3, 5),
    }


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("layout", layouts(torch.zeros(4, 6, 3, 5)))
def test_the_order_of_memory_changes_nothing(layout: str, axis: int):
    values = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(axis))
    values[1, 2, 0, 3] = math.nan
    laid = layouts(values)[layout]
    peaks = Peaks.along(laid, axis, True)
    for place in range(laid.shape[axis]):
        there = laid.select(axis, place).flatten()
        for found, wanted in ((peaks.top, there.max()), (peaks.bottom, there.min())):
            assert torch.equal(found[place], wanted) or (found[place].isnan() and wanted.isnan())
        torch.testing.assert_close(peaks.total[place], there.sum(), equal_nan=True)


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("layout", layouts(torch.zeros(4, 6, 3, 5)))
def test_zeros_are_counted(layout: str, axis: int):
    values = torch.randint(-1, 2, (4, 6, 3, 5), generator=torch.Generator().manual_seed(axis)).float()
    laid = layouts(values)[layout]
    wanted = [laid.select(axis, place).flatten().tolist().count(0.0) for place in range(laid.shape[axis])]
    assert zeros(laid, axis).tolist() == wanted


def test_no_rows_have_no_zeros():
    assert zeros(torch.empty(0, 3), 1).tolist() == [0, 0, 0]
