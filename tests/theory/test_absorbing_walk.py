"""The absorbing walk: its closed form against the integral of the paper, its simulator against the closed form."""

import math

import pytest

from demp import theory
from demp.errors import UsageError

QUANTILE = 4.0
"""Deviations that a seeded count may be off; an honest one is, at any of 50 points, with probability 0.003."""


def integral(start, rate, time, parts=20_000):
    """sqrt(2/pi) times the integral of exp(-w^2/2) from 0 to w0/sqrt(eta t), by Simpson's rule (Prop. B.1, right)."""
    end = start / math.sqrt(rate * time)
    width = end / parts
    heights = [math.exp(-((k * width) ** 2) / 2) for k in range(parts + 1)]
    weighted = sum(h * (1 if k in (0, parts) else 4 if k % 2 else 2) for k, h in enumerate(heights))
    return math.sqrt(2 / math.pi) * weighted * width / 3


@pytest.mark.parametrize(
    ("start", "rate", "time"), [(1.0, 0.1, 50.0), (0.02, 0.005, 3.0), (3.0, 2.0, 0.5), (1, 1, 1e6)]
)
def test_the_survival_probability_is_the_integral_of_the_paper(start, rate, time):
    assert theory.survival(start, rate, time) == pytest.approx(integral(start, rate, time), rel=1e-10)


def test_the_three_remarks_on_the_proposition():
    over_time = [theory.survival(1.0, 0.1, time) for time in (1, 10, 100, 1e4, 1e8)]
    assert over_time == sorted(over_time, reverse=True)
    assert over_time[-1] < 1e-3  # (i) it dies in the end
    assert theory.survival(0.5, 0.1, 10) < theory.survival(1.0, 0.1, 10)  # (ii) a small start dies sooner
    assert theory.survival(1.0, 0.2, 10) < theory.survival(1.0, 0.1, 10)  # (iii) noise kills faster
    assert theory.survival(1.0, 0.2, 10) == theory.survival(1.0, 0.1, 20)


@pytest.mark.parametrize(("start", "rate"), [(1.0, 0.1), (0.3, 0.5), (2.0, 0.05)])
def test_simulated_walks_survive_as_the_closed_form_says(start, rate):
    found = theory.absorbing_walks(start, rate, [0.5 * k for k in range(1, 51)], walks=40_000, seed=3)
    assert found.alive == tuple(sorted(found.alive, reverse=True))
    assert max(abs(d) for d in found.deviations) < QUANTILE


def test_the_counts_do_not_depend_on_how_often_one_looks():
    """Between two looks a path may touch zero: 40,000 walks in one stride die as often as in a hundred."""
    strides = [theory.absorbing_walks(1.0, 0.1, times, walks=40_000, seed=1) for times in ([50], range(1, 51))]
    assert all(abs(found.deviations[-1]) < QUANTILE for found in strides)


def test_a_walk_that_is_caught_only_where_it_steps_lives_longer():
    times = [50.0, 100.0, 200.0]
    walks = theory.absorbing_walks(1.0, 0.1, times, walks=40_000, step=1.0, seed=2)
    assert max(abs(d) for d in walks.deviations) < QUANTILE
    for found, exact in zip(walks.shares, (theory.survival(1.0, 0.1, t) for t in times), strict=True):
        assert found > exact + 0.015


def test_literal_twin_of_the_stepping_walk():
    """One walk after the other, step by step, in plain Python: the same share within the error of both."""
    import random

    draw, walks, steps, alive = random.Random(0), 4000, 60, 0
    for _ in range(walks):
        position = 1.0
        for _ in range(steps):
            position += math.sqrt(0.1) * draw.gauss(0, 1)
            if position <= 0:
                break
        alive += position > 0
    expected = theory.absorbing_walks(1.0, 0.1, [60.0], walks=100_000, step=1.0).shares[0]
    assert abs(theory.deviation(alive, walks, expected)) < QUANTILE


def test_seeds_decide():
    walks = [theory.absorbing_walks(1.0, 0.1, [1, 5, 9], walks=2000, seed=seed).alive for seed in (0, 0, 1)]
    assert walks[0] == walks[1] != walks[2]


def test_deviations_of_counts():
    assert theory.deviation(60, 100, 0.5) == 2.0
    assert theory.deviation(100, 100, 1.0) == 0.0
    assert theory.deviation(99, 100, 1.0) == -math.inf


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((0.0, 0.1, [1.0]), {}, "start is 0.0; give a number above 0"),
        ((1.0, -1, [1.0]), {}, "rate is -1"),
        ((1.0, math.nan, [1.0]), {}, "rate is nan"),
        ((1.0, 0.1, [1.0]), {"walks": 0}, "walks is 0"),
        ((1.0, 0.1, []), {}, "give rising numbers"),
        ((1.0, 0.1, [2.0, 1.0]), {}, r"times are \[2.0, 1.0\]; give rising numbers"),
        ((1.0, 0.1, [1.0, 2.5]), {"step": 1.0}, "2.5 is no multiple of step 1"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments, options, says):
    with pytest.raises(UsageError, match=says):
        theory.absorbing_walks(*arguments, **options)


def test_a_survival_probability_needs_a_start_a_rate_and_a_time():
    for wrong in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(UsageError, match="is 0; give a number above 0"):
            theory.survival(*wrong)
    with pytest.raises(UsageError, match="step is -1"):
        theory.survival(1, 1, 1, step=-1)
