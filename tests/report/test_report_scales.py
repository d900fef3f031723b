import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demp.experiments.report.scales import AxisScale, evenly, floor_of, round_step, scale, without_overlap


@given(st.floats(1e-12, 1e12))
def test_steps_are_the_smallest_round_ones(rough):
    known = [digit * 10.0**power for power in range(-14, 15) for digit in (1, 2, 2.5, 5)]
    assert round_step(rough) == pytest.approx(min(step for step in known if step >= rough * (1 - 1e-9)), rel=1e-12)


@given(st.integers(-5000, 5000), st.floats(1e-3, 1e6), st.integers(1, 12))
def test_ticks_are_all_multiples_inside(shift, size, about):
    low = shift / 100 * size
    axis = AxisScale(low, low + size, 0, 100)
    ticks, step = axis.ticks(about), round_step(size / about)
    expected = [at * step for at in range(math.floor(low / step) - 1, math.ceil((low + size) / step) + 2)]
    expected = [value for value in expected if low - 1e-9 * step <= value <= low + size + 1e-9 * step]
    assert ticks == pytest.approx(expected, abs=1e-6 * step)
    assert len(ticks) <= about + 1


def test_places_are_linear_and_may_go_up():
    up = AxisScale(10, 20, 300, 100)
    assert [up(10), up(20), up(15), up(12.5)] == [300, 100, 200, 250]


def test_a_scale_shows_all_values_with_room():
    axis = scale([2, 4], 0, 100, pad=0.1)
    assert (axis.low, axis.high) == pytest.approx((1.8, 4.2))
    assert scale([2, 4], 0, 1, zero=True).low == 0
    assert scale([0.2, 1.0], 0, 1, cap=1.0).high == 1.0
    assert scale([0.2, 1.5], 0, 1, cap=1.0).high > 1.5  # never hides a value
    for same in ([0.0], [5, 5], [-2], []):
        axis = scale(same, 0, 1)
        assert axis.low < axis.high and all(axis.low < value < axis.high for value in same)


def literal_floor(values):
    values = sorted(values)
    if len(values) < 4:
        return None
    top, middle = values[-1], values[len(values) // 2]
    kept = [v for v in values if v >= top - max(5 * (top - middle), 0.08 * abs(top))]
    return min(kept) if len(kept) < len(values) and 4 * (len(values) - len(kept)) <= len(values) else None


@given(st.lists(st.floats(0, 1), max_size=12))
def test_few_far_away_are_left_below(values):
    assert floor_of(values) == literal_floor(values)


def test_a_collapsed_run_does_not_flatten_the_others():
    assert floor_of([0.93, 0.92, 0.91, 0.925, 0.1]) == 0.91
    assert floor_of([0.93, 0.5, 0.4, 0.3]) is None


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_their_distance_and_order(seed):
    draw = random.Random(seed)
    places = [draw.uniform(0, 100) for _ in range(draw.randrange(1, 8))]
    found = without_overlap(places, 12, 0, 100)
    order = sorted(range(len(places)), key=lambda at: places[at])
    put = [found[at] for at in order]
    assert all(b - a >= 12 - 1e-6 for a, b in itertools.pairwise(put))
    assert min(put) >= -1e-6 and max(put) <= 100 + 1e-6
    if all(b - a >= 12 for a, b in itertools.pairwise(sorted(places))):
        assert found == pytest.approx(places)


def test_two_labels_at_one_place_part_evenly():
    assert sorted(without_overlap([50, 50], 10, 0, 100)) == [45, 55]
    assert without_overlap([1, 2], 10, 0, 100) == [0, 10]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 7))
def test_parts_are_even_and_in_order(items, most):
    parts = evenly(items, most)
    sizes = [len(part) for part in parts]
    assert [item for part in parts for item in part] == items
    assert len(parts) == math.ceil(len(items) / most)
    assert all(0 < size <= most for size in sizes) and max(sizes, default=0) - min(sizes, default=0) <= 1
