"""Schedules against hand values (shape with peak 1), torch's own one-cycle, and what holds for all of them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demp import schedules
from demp.errors import UsageError
from demp.regularization.schedules import Constant, CosineDecay, OneCycle, WarmUp, make

NAMES = ("one-cycle", "one-cycle-linear", "constant", "cosine-decay", "warm-up")


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.04), (3, 0.06349287), (15, 0.52), (30, 1.0), (65, 0.500002), (100, 4e-6), (101, 4e-6), (900, 4e-6)],
)
def test_stock_one_cycle_has_the_published_values(step: int, expected: float):
    assert OneCycle()(step, 100) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.04), (3, 0.136), (15, 0.52), (30, 1.0), (65, 0.500002), (100, 4e-6)]
)
def test_linear_one_cycle_rises_on_a_line_and_falls_on_a_cosine(step: int, expected: float):
    assert OneCycle(rise="linear")(step, 100) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("schedule", "at_0", "at_25", "at_50", "at_100", "past"),
    [
        (Constant(), 1.0, 1.0, 1.0, 1.0, 1.0),
        (CosineDecay(), 1.0, 0.8535533906, 0.5, 0.0, 0.0),
        (WarmUp(), 1e-6, 0.25000075, 0.5000005, 1.0, 1.0),
    ],
)
def test_schedules_of_figure_4(schedule, at_0: float, at_25: float, at_50: float, at_100: float, past: float):
    values = [schedule(step, 100) for step in (0, 25, 50, 100, 150)]
    assert values == pytest.approx([at_0, at_25, at_50, at_100, past], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_span_squeezes_the_shape_and_keeps_its_last_value(name: str):
    whole, half = make(name), make(name, span=0.5)
    assert [half(step, 200) for step in range(101)] == pytest.approx([whole(step, 100) for step in range(101)])
    assert {half(step, 200) for step in range(100, 500, 37)} == {whole(100, 100)}


@pytest.mark.parametrize("peak_at", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("rise", ["cosine", "linear"])
def test_the_peak_is_where_it_should_be(peak_at: float, rise: str):
    values = [OneCycle(span=0.8, peak_at=peak_at, rise=rise)(step, 1000) for step in range(1001)]
    assert values.index(max(values)) == pytest.approx(800 * peak_at, abs=1)
    assert max(values) == pytest.approx(1.0, abs=1e-4)


def test_the_stock_form_is_torchs_one_cycle():
    steps, peak_step = 100, 30
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch's cycle ends at its last step (total_steps - 1) and turns at pct_start * total_steps - 1
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps + 1, pct_start=(peak_step + 1) / (steps + 1), cycle_momentum=False
    )
    for step in range(steps + 1):
        assert OneCycle()(step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < steps:
            theirs.step()


@settings(deadline=None)
@given(
    name=st.sampled_from(NAMES),
    span=st.floats(0.01, 1.0),
    peak_at=st.floats(0.0, 0.99),
    total=st.integers(1, 100_000),
    steps=st.lists(st.integers(0, 200_000), min_size=2, max_size=20),
)
def test_every_schedule_stays_in_0_1_and_turns_only_at_its_peak(
    name: str, span: float, peak_at: float, total: int, steps: list[int]
):
    schedule = make(name, span=span, peak_at=peak_at)
    steps = sorted(steps)
    values = [schedule(step, total) for step in steps]
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in values)
    peak = {"warm-up": math.inf, "cosine-decay": 0.0, "constant": 0.0}.get(name, peak_at * span * total)
    for (before, low), (after, high) in itertools.pairwise(zip(steps, values, strict=True)):
        if after <= peak:
            assert low <= high + 1e-12
        if before >= peak:
            assert low >= high - 1e-12


def test_names_are_the_ones_in_the_docs_and_a_wrong_one_is_refused():
    assert [make(name, span=0.5).span for name in NAMES] == [0.5] * len(NAMES)
    with pytest.raises(
        UsageError, match="schedule is 'cosine'; choose one of one-cycle, .*; did you mean 'cosine-decay'"
    ):
        make("cosine")


@pytest.mark.parametrize("span", [0.0, -0.1, 1.5, math.nan])
def test_a_span_outside_the_run_is_refused(span: float):
    with pytest.raises(UsageError, match="span"):
        Constant(span=span)


@pytest.mark.parametrize("options", [{"peak_at": 1.0}, {"peak_at": -0.1}, {"peak_at": math.nan}, {"rise": "square"}])
def test_a_peak_outside_the_span_or_an_unknown_rise_is_refused(options: dict):
    with pytest.raises(UsageError, match=next(iter(options))):
        OneCycle(**options)


def test_the_constants_are_those_of_the_stock_one_cycle():
    assert (schedules.START_DIV, schedules.END_DIV) == (25.0, 1e4)
