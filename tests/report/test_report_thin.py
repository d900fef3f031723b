import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demp.experiments.report.thin import Thinned, joined, thinned


def literal(points, buckets):
    """The rule, from its words: a stretch is so many points that fewer than 2 x buckets are full."""
    width = 1
    while len(points) // width >= 2 * buckets:
        width *= 2
    kept = [points[0]]
    for at in range(0, len(points), width):
        stretch = points[at : at + width]
        low = min(stretch, key=lambda point: point[1])
        high = max(stretch, key=lambda point: point[1])
        kept += sorted((low, high), key=lambda point: point[0])
    return list(dict.fromkeys([*kept, points[-1]]))


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.integers(-9, 9), min_size=1, max_size=400), buckets=st.integers(1, 20))
def test_extremes_of_every_stretch_stay(values, buckets):
    points = [(float(at), float(value)) for at, value in enumerate(values)]
    assert [tuple(point) for point in thinned(points, buckets)] == literal(points, buckets)


def test_a_short_series_stays_as_it_is():
    draw = random.Random(0)
    points = [(at, draw.random()) for at in range(199)]
    assert [tuple(point) for point in thinned(points, 100)] == points
    assert thinned([]) == []


@pytest.mark.parametrize("count", [1000, 54_321])
def test_a_long_one_is_small_and_loses_no_spike(count):
    draw = random.Random(count)
    points = [(at, draw.gauss(0, 1)) for at in range(count)]
    spikes = {draw.randrange(count): sign * (50.0 + at) for at in range(20) for sign in (1, -1)}
    points = [(at, spikes.get(at, value)) for at, value in points]
    kept = thinned(points, 100)
    assert len(kept) <= 402
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert max(kept, key=lambda p: p.value) == max(points, key=lambda p: p[1])
    assert min(kept, key=lambda p: p.value) == min(points, key=lambda p: p[1])
    steps = [point.step for point in kept]
    assert steps == sorted(steps) and set(map(tuple, kept)) <= set(points)


def test_memory_does_not_grow():
    series = Thinned(10)
    for at in range(100_000):
        series.add(at, at % 7)
        assert len(series._full) < 20


def test_of_equal_extremes_the_earlier_stays():
    left, right = ((0, 1.0), (0, 1.0)), ((1, 1.0), (1, 1.0))
    assert joined(left, right) == left
