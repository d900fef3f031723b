"""Criteria against their definitions, element by element."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demp.activity import Criterion
from demp.activity.criteria import Peaks
from demp.errors import UsageError

VALUES = (0.0, 0.0, 0.0, -0.5, -0.125, 0.0078125, -0.0078125, 1.0, 2.0, math.nan)
"""Dyadic numbers: sums are exact in any order."""


def literal(kind: str, neurons: list[list[float]], eps: float, relative: bool) -> list[bool]:
    """Dead or not, from the words of the definition."""
    peaks = [max((abs(v) for v in values), default=0.0) if not any(map(math.isnan, values)) else math.nan
             for values in neurons]  # fmt: skip
    known = [peak for peak in peaks if math.isfinite(peak)]
    limit = eps * (sum(known) / len(known) if relative and known else 1.0)
    detection = []
    for values in neurons:
        if any(math.isnan(v) for v in values):
            dead = False
        elif kind == "exact":
            dead = all(v == 0 for v in values)
        elif kind == "negative-only":
            dead = all(v <= 0 for v in values)
        elif kind == "sum":
            dead = math.fsum(values) <= eps
        else:
            dead = all(abs(v) < limit or v == 0 for v in values)
        detection.append(dead)
    return detection


def judged(criterion: Criterion, activation: str, values: Tensor, axis: int) -> list[bool]:
    return criterion.dead(activation, Peaks.along(values, axis, criterion.kind == "sum")).tolist()


@st.composite
def activations(draw: st.DrawFn) -> Tensor:
    """Batch x neurons, or batch x neurons x space; some neurons use few of the values only."""
    batch, neurons, space = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.sampled_from([(), (3,), (2, 2)]))
    columns = []
    for _ in range(neurons):
        allowed = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=3))
        picks = st.lists(st.sampled_from(allowed), min_size=batch * math.prod(space), max_size=batch * math.prod(space))
        columns.append(torch.tensor(draw(picks), dtype=torch.float64).view(batch, *space))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    ("kind", "eps", "relative"),
    [
        ("exact", None, True), ("negative-only", None, True), ("sum", None, True), ("sum", 0.25, True),
        ("epsilon", 0.01, False), ("epsilon", 0.01, True), ("epsilon", 0.75, True), ("epsilon", 0.0, True),
    ],
)  # fmt: skip
@settings(deadline=None, max_examples=60)
@given(values=activations())
def test_criteria_are_their_definitions(kind: str, eps: float | None, relative: bool, values: Tensor):
    criterion = Criterion(kind=kind, eps=eps, relative=relative)
    neurons = [values[:, j].flatten().tolist() for j in range(values.shape[1])]
    assert judged(criterion, "relu", values, 1) == literal(kind, neurons, eps or 0.0, relative)


@settings(deadline=None, max_examples=40)
@given(values=activations(), block=st.integers(1, 3), order=st.randoms(use_true_random=False))
def test_a_neuron_with_several_positions_is_judged_on_all_of_them(values: Tensor, block: int, order):
    flat = torch.cat([values.flatten(2).sum(2) if values.dim() > 2 else values] * block, 1)
    width = flat.shape[1] // block
    owner = [position % width for position in range(flat.shape[1])]
    places = list(range(flat.shape[1]))
    order.shuffle(places)
    peaks = Peaks.along(flat, 1, True)
    mine = peaks.gather(torch.tensor(places), torch.tensor([owner[p] for p in places]), width)
    neurons = [[v for p in range(flat.shape[1]) if owner[p] == j for v in flat[:, p].tolist()] for j in range(width)]
    for kind in ("exact", "negative-only", "sum"):
        assert Criterion(kind=kind).dead("relu", mine).tolist() == literal(kind, neurons, 0.0, True)


def test_a_sum_in_double_precision_stays_in_double_precision():
    values = torch.tensor([[1.0, 1.0], [1e-12 - 1.0, -1e-12 - 1.0]], dtype=torch.float64)
    assert judged(Criterion(kind="sum"), "gelu", values, 1) == [False, True]


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_the_neuron_axis_may_be_the_last_or_the_only_one(shape: tuple[int, ...]):
    values = torch.zeros(shape)
    values[..., 2] = 1.0
    assert judged(Criterion(), "relu", values, len(shape) - 1) == [True, True, False, True, True]


@pytest.mark.parametrize("kind", ["exact", "negative-only", "epsilon", "sum"])
def test_a_nan_is_no_death_and_does_not_touch_the_others(kind: str):
    values = torch.tensor([[math.nan, -1.0, 0.0, 5.0], [-1.0, math.nan, 0.0, 5.0]])
    assert judged(Criterion(kind=kind), "relu", values, 1) == [False, False, True, False]


def test_an_infinite_neuron_does_not_make_the_others_small():
    values = torch.tensor([[1.0, 2.0, math.inf, 1e-6]])
    assert judged(Criterion(kind="epsilon"), "gelu", values, 1) == [False, False, False, True]


def test_a_layer_of_zeros_is_dead_by_every_criterion():
    for kind in ("exact", "negative-only", "epsilon", "sum"):
        assert judged(Criterion(kind=kind), "gelu", torch.zeros(3, 4), 1) == [True] * 4


def test_the_criterion_follows_the_activation():
    kinds = ("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish")
    resolved = [Criterion().resolve(kind) for kind in kinds]
    assert resolved == ["exact", "exact", "negative-only", "negative-only", *["saturated"] * 3]
    assert [Criterion().is_exact(kind) for kind in kinds] == [True, True] + [False] * 5
    assert [Criterion(kind="paper").resolve(kind) for kind in kinds] == [*resolved[:4], *["epsilon"] * 3]
    assert Criterion(kind="sum").resolve("relu") == "sum"
    assert judged(Criterion(), "relu", torch.tensor([[-1.0, 0.0]]), 1) == [False, True]
    assert judged(Criterion(), "leaky_relu", torch.tensor([[-1.0, 1.0]]), 1) == [True, False]


def test_the_papers_thresholds_are_the_defaults():
    values = torch.tensor([[1.0, 0.0099, 0.0101]])
    assert judged(Criterion(kind="epsilon", relative=False), "gelu", values, 1) == [False, True, False]
    assert judged(Criterion(kind="sum"), "gelu", torch.tensor([[0.0, 1e-9]]), 1) == [True, False]


def test_an_empty_batch_judges_nothing():
    with pytest.raises(UsageError, match="empty batch"):
        Peaks.along(torch.zeros(0, 4), 1, False)


@pytest.mark.parametrize("options", [{"kind": "dead"}, {"eps": -0.1}, {"eps": math.nan}])
def test_nonsense_is_refused(options: dict):
    with pytest.raises(UsageError, match="criterion"):
        Criterion(**options)
