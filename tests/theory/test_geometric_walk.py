"""The geometric walk: moments against numerical integration, the lemmas against simulation."""

import itertools
import math

import pytest
import torch

from demp import theory
from demp.errors import UsageError

NOISES = [theory.TwoPoint(1.0), theory.Uniform(1.0), theory.TwoPoint(2.5), theory.Uniform(0.3)]
QUANTILE = 4.0


def moments(noise, rate, curvature):
    """Mean and variance of log(1 - eta (h + zeta)), from the definition: a sum, or the midpoint rule."""
    if isinstance(noise, theory.TwoPoint):
        values = [noise.std, -noise.std]
    else:
        count = 200_000
        values = [noise.reach * (2 * (k + 0.5) / count - 1) for k in range(count)]
    logs = [math.log(1 - rate * (curvature + zeta)) for zeta in values]
    mean = math.fsum(logs) / len(logs)
    return mean, math.fsum((log - mean) ** 2 for log in logs) / len(logs)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("share", "curvature"), [(0.9, -0.2), (0.3, 0.1), (0.02, -0.05), (0.003, -0.1)])
def test_growth_rate_and_spread_are_what_their_definition_says(noise, share, curvature):
    rate = share / noise.reach
    mean, variance = moments(noise, rate, curvature)
    assert theory.growth_rate(noise, rate, curvature) == pytest.approx(mean, rel=1e-5, abs=1e-12)
    assert theory.growth_spread(noise, rate, curvature) == pytest.approx(math.sqrt(variance), rel=1e-5)


def test_the_series_for_narrow_noise_continues_the_primitives():
    noise = theory.Uniform(1.0)
    rates = [share / noise.reach for share in (4.999e-3, 5.001e-3)]
    below, above = (noise.log_moments(1.0, rate) for rate in rates)
    assert above == pytest.approx(below, rel=2e-3)
    assert [mean / variance for mean, variance in (below, above)] == pytest.approx([-0.5, -0.5], abs=1e-4)


@pytest.mark.parametrize("noise", NOISES[:2])
def test_drawn_noise_has_the_mean_deviation_and_reach_that_it_says(noise):
    values = noise.draw((200_000,), torch.Generator().manual_seed(0))
    assert abs(values.mean().item()) < QUANTILE * noise.std / math.sqrt(len(values))
    assert values.std().item() == pytest.approx(noise.std, rel=0.01)
    assert values.abs().max().item() <= noise.reach
    assert values.abs().max().item() > 0.999 * noise.reach


@pytest.mark.parametrize("noise", NOISES[:2])
def test_lemma_b2_walks_grow_at_the_rate_of_the_mean_logarithm(noise):
    rate, curvature, times, walks = 0.3, -0.1, [50, 200], 20_000
    logs = theory.geometric_walks(noise, rate, curvature, times, walks=walks, seed=1)
    mu, spread = theory.growth_rate(noise, rate, curvature), theory.growth_spread(noise, rate, curvature)
    for steps, log in zip(times, logs, strict=True):
        error = spread * math.sqrt(steps / walks)
        assert abs(log.mean().item() - mu * steps) < QUANTILE * error
        assert log.std().item() == pytest.approx(spread * math.sqrt(steps), rel=0.03)


def test_lemma_b2_from_t0_on_walks_are_inside_the_band_with_the_promised_probability():
    noise, rate, curvature, epsilon, delta = theory.Uniform(1.0), 0.3, -0.1, 0.05, 0.2
    start = theory.settled_after(noise, rate, curvature, epsilon=epsilon, delta=delta)
    mu, times = theory.growth_rate(noise, rate, curvature), [start, 2 * start, 4 * start]
    logs = theory.geometric_walks(noise, rate, curvature, times, walks=5000, seed=2)
    inside = [((log / t - mu).abs() < epsilon).double().mean().item() for t, log in zip(times, logs, strict=True)]
    assert all(share >= 1 - delta for share in inside)
    assert inside == sorted(inside)
    early = theory.geometric_walks(noise, rate, curvature, [max(1, start // 40)], walks=5000, seed=2)[0]
    assert ((early / max(1, start // 40) - mu).abs() < epsilon).double().mean().item() < 1 - delta


def test_literal_twin_of_the_walk():
    """Eq. 11 step by step on w itself, with the same draws."""
    noise, rate, curvature = theory.TwoPoint(1.0), 0.4, -0.1
    logs = theory.geometric_walks(noise, rate, curvature, [3, 7], walks=5, seed=9)
    draw = torch.Generator().manual_seed(9)
    zeta = torch.cat([noise.draw((3, 5), draw), noise.draw((4, 5), draw)])
    for walk in range(5):
        w = 2.0
        for step in range(7):
            w = w - rate * (curvature + zeta[step, walk].item()) * w
            if step + 1 in (3, 7):
                row = (3, 7).index(step + 1)
                assert logs[row, walk].item() == pytest.approx(math.log(w / 2.0), rel=1e-12)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.2])
def test_lemma_b3_inside_the_range_the_growth_rate_is_negative_despite_the_curvature(noise, ratio):
    curvature = -ratio * noise.std
    found = theory.stability_range(noise, curvature)
    assert found is not None
    low, high = found
    assert 0 < low < high <= 1 / noise.reach
    for share in (1e-6, 0.25, 0.5, 0.75, 1 - 1e-6):
        rate = low + share * (high - low)
        assert theory.growth_rate(noise, rate, curvature) < 0
        assert theory.rate_bound(noise, rate, curvature) <= 1e-12
    assert theory.rate_bound(noise, 0.99 * low, curvature) > 0
    assert theory.stable_above(noise, curvature) <= low


@pytest.mark.parametrize("noise", NOISES)
def test_the_bound_of_eq_15_is_one_and_its_roots_are_those_of_the_polynomial(noise):
    for share, ratio in itertools.product((0.01, 0.3, 0.99), (-0.3, -0.05, 0.2)):
        rate, curvature = share / noise.reach / (1 + abs(ratio)), ratio * noise.std
        assert theory.growth_rate(noise, rate, curvature) <= theory.rate_bound(noise, rate, curvature)
    h, power = 0.1 * noise.std, noise.std**2
    low, _ = theory.stability_range(noise, -h)
    assert h - low / 2 * (h**2 + power) + low**2 / 3 * h * (h**2 + 3 * power) == pytest.approx(0, abs=1e-12 * noise.std)


def test_there_is_a_range_only_for_a_small_curvature():
    """The discriminant vanishes at (h/sigma)^2 = (sqrt(480) - 21) / 13."""
    critical = math.sqrt((math.sqrt(480) - 21) / 13)
    assert critical == pytest.approx(0.26442, abs=1e-5)
    noise = theory.TwoPoint(1.0)
    assert theory.stability_range(noise, -0.999 * critical) is not None
    assert theory.stability_range(noise, -1.001 * critical) is None
    assert theory.stable_above(noise, -1.001 * critical) is not None  # the bound is not the truth


def test_the_exact_edge_of_two_point_noise():
    """mu < 0 iff (1 + eta |h|)^2 - eta^2 sigma^2 < 1, that is eta > 2 |h| / (sigma^2 - h^2)."""
    noise = theory.TwoPoint(2.0)
    assert theory.stable_above(noise, -0.3) == pytest.approx(0.6 / (4 - 0.09), rel=1e-12)
    assert theory.stable_above(noise, -2.0 * (math.sqrt(2) - 1) * 1.001) is None


def test_simulated_directions_are_unstable_below_the_edge_and_stable_above():
    noise, curvature, steps, walks = theory.Uniform(1.0), -0.1, 400, 4000
    edge = theory.stable_above(noise, curvature)
    for factor, sign in ((0.5, 1), (1.5, -1)):
        grown = theory.geometric_walks(noise, factor * edge, curvature, [steps], walks=walks, seed=4)[0]
        error = theory.growth_spread(noise, factor * edge, curvature) * math.sqrt(steps / walks)
        assert sign * grown.mean().item() > QUANTILE * error


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: theory.growth_rate(theory.TwoPoint(1.0), 1.0, -0.1), "may cross zero"),
        (lambda: theory.growth_rate(theory.TwoPoint(1.0), 0.6, 1.0), "may cross zero"),
        (lambda: theory.growth_rate(theory.TwoPoint(1.0), 0.0, -0.1), "rate is 0.0; give a number above 0"),
        (lambda: theory.Uniform(0.0), "std is 0.0"),
        (lambda: theory.stability_range(theory.Uniform(1.0), 0.1), "below 0"),
        (lambda: theory.stable_above(theory.Uniform(1.0), 0.0), "below 0"),
        (lambda: theory.geometric_walks(theory.Uniform(1.0), 0.1, -0.1, [5, 5]), "give rising numbers"),
        (lambda: theory.settled_after(theory.Uniform(1.0), 0.1, -0.1, epsilon=0.0, delta=0.1), "epsilon is 0.0"),
    ],
)
def test_what_the_lemmas_do_not_cover_is_refused(call, says):
    with pytest.raises(UsageError, match=says):
        call()
