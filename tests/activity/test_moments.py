"""Moments against their definition: whatever the dtype, the layout, the mean and the pieces they come in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demp.activity import moments
from demp.activity.moments import Moments
from demp.errors import UsageError

SHAPES = [((7, 5), 1), ((2, 6, 5), 2), ((4, 5, 3), 1), ((3, 5, 4, 4), 1), ((2, 5, 2, 3, 4), 1), ((5,), 0), ((5, 3), 0)]


def by_definition(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each place in float64, two passes."""
    rows = values.double().movedim(axis, 0).reshape(values.shape[axis], -1)
    mean = rows.mean(1)
    return mean, ((rows - mean[:, None]) ** 2).mean(1).sqrt()


def check(found: Moments, values: Tensor, axis: int, digits: float) -> None:
    mean, deviation = by_definition(values, axis)
    torch.testing.assert_close(found.mean, mean, rtol=digits, atol=digits)
    torch.testing.assert_close(found.deviation, deviation, rtol=digits, atol=1e-12)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_moments_are_their_definition(shape, axis, dtype):
    values = torch.randn(shape).to(dtype)
    check(Moments.along(values, axis), values, axis, 1e-12 if dtype == torch.float64 else 1e-5)
    if values.dim() == 4:
        check(Moments.along(values.contiguous(memory_format=torch.channels_last), axis), values, axis, 1e-5)


@pytest.mark.parametrize("mean", [1.0, 1e4, 3e6])
def test_a_large_mean_costs_no_digits(mean):
    values = (mean + torch.randn(400, 3) * torch.tensor([1.0, 4.0, 100.0])).float()
    check(Moments.along(values, 1), values, 1, 1e-5)


@pytest.mark.parametrize("shape", [(6, 5, 8, 8), (6, 5, 3, 3), (40, 5), (2, 5, 80), (3, 5, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_near_and_far_means_side_by_side(shape, layout, dtype, monkeypatch):
    monkeypatch.setattr(moments, "CACHED", 64)
    shift = torch.tensor([0.0, 3.0, -40.0, 0.5, 1000.0]).view(-1, *[1] * (len(shape) - 2))
    values = (torch.randn(shape) + shift).to(dtype)
    if len(shape) == 4:
        values = values.contiguous(memory_format=layout)
    check(Moments.along(values, 1), values, 1, 1e-10 if dtype == torch.float64 else 1e-4)


def test_an_expanded_activation_counts_each_place():
    values = torch.randn(3, 1, 4, 4, dtype=torch.float64).expand(3, 5, 4, 4)
    check(Moments.along(values, 1), values, 1, 1e-12)


def test_half_precision_is_summed_wide():
    values = torch.full((70_000, 2), 1.0, dtype=torch.bfloat16)
    values[::2, 1] = 1.0078125  # the next number of this type: a sum in bfloat16 would stop at 256
    found = Moments.along(values, 1)
    assert found.mean.tolist() == [1.0, pytest.approx(1.00390625, abs=1e-9)]
    assert found.deviation.tolist() == [0.0, pytest.approx(0.00390625, rel=1e-6)]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_constant_has_no_deviation_at_all(value, dtype):
    constant = torch.tensor(value, dtype=dtype)
    if not bool(constant.isfinite()):
        constant = torch.tensor(7.3, dtype=dtype)
    values = torch.randn(9, 3, 5, 5).to(dtype)
    values[:, 1] = constant
    one, two = Moments.along(values, 1), Moments.along(values[:4], 1)
    for found in (one, one.merged(two)):
        assert found.deviation[1] == 0 and found.mean[1] == constant.double()
        assert bool((found.deviation[[0, 2]] > 0.1).all())


def test_one_value_far_off_at_the_place_where_sums_begin_is_no_constant():
    values = torch.full((1_000_000, 2), 1.0)
    values[500_000, 0] = 1001.0
    check(Moments.along(values, 1), values, 1, 1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([0.0, 1.0, 1e5]))
def test_pieces_merge_to_the_whole(sizes, seed, shift):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64) + shift
    whole = Moments.none(4)
    for piece in values.split(sizes):
        whole = whole.merged(Moments.along(piece, 1))
    check(whole, values, 1, 1e-9)
    assert whole.count.tolist() == [sum(sizes)] * 4


def test_constant_in_each_piece_but_not_in_all_is_no_constant():
    whole = Moments.along(torch.full((4, 1), 2.0), 1).merged(Moments.along(torch.full((4, 1), 4.0), 1))
    assert (whole.mean.item(), whole.deviation.item()) == (3.0, 1.0)


def test_several_places_of_one_owner_count_together():
    values = torch.randn(6, 8, dtype=torch.float64)
    owner = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    found = Moments.along(values, 1).of(torch.arange(8), owner, 3)
    for one in range(3):
        mine = values[:, owner == one].flatten()
        assert found.mean[one].item() == pytest.approx(mine.mean().item(), abs=1e-12)
        assert found.deviation[one].item() == pytest.approx(mine.std(correction=0).item(), abs=1e-12)


def test_a_nan_stays_one_and_touches_no_other():
    values = torch.ones(5, 3)
    values[2, 1] = torch.nan
    found = Moments.along(values, 1).merged(Moments.along(torch.ones(2, 3), 1))
    assert found.deviation.isnan().tolist() == [False, True, False]


def test_an_empty_batch_is_refused():
    with pytest.raises(UsageError, match="empty batch"):
        Moments.along(torch.zeros(0, 4), 1)
