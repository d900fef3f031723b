"""What others can say of a neuron: elimination and stand-ins against their definition, covariances against torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import demp
from demp.activity import covariances as module
from demp.activity.covariances import Covariance, Covariances, CovarianceWindow
from demp.activity.tally import key_of
from demp.importance.redundancy import RIDGE, ridge_of, stand_in, unsaid
from demp.methods.redundant import unsaid_by_class
from demp.parallel import ALONE
from demp.regularization.handover import takers
from nets import Forward


def mixed(count: int, seed: int, rank: int | None = None) -> torch.Tensor:
    """Values (examples, neurons) in float64, mixed from ``rank`` sources, of unequal size."""
    random = torch.Generator().manual_seed(seed)
    sources = torch.randn(400, rank or count, generator=random, dtype=torch.float64)
    mix = torch.randn(rank or count, count, generator=random, dtype=torch.float64)
    return sources @ mix * torch.rand(count, generator=random, dtype=torch.float64).add(0.1) + 3


def by_definition(importance: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Remove the cheapest neuron, invert what is left anew, and so on."""
    deviation = covariance.diagonal().sqrt()
    ridged = covariance / deviation[:, None] / deviation
    ridged.fill_diagonal_(1 + RIDGE)
    found, left, highest = torch.zeros(len(importance), dtype=torch.float64), list(range(len(importance))), 0.0
    while left:
        cost = importance[left].double() / torch.linalg.inv(ridged[left][:, left]).diagonal()
        cheapest = int(cost.argmin())
        highest = max(highest, float(cost[cheapest]))
        found[left.pop(cheapest)] = highest
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_elimination_is_its_definition(count, seed, narrow):
    values = mixed(count, seed, rank=max(1, count // 2) if narrow else None)
    covariance = torch.cov(values.T, correction=0).reshape(count, count)
    importance = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(unsaid(importance, covariance), by_definition(importance, covariance), rtol=1e-8, atol=0)


def test_of_two_that_say_the_same_one_costs_little_and_the_other_all():
    values = mixed(6, 0)
    values[:, 4] = 5 - 2 * values[:, 1]
    found = unsaid(torch.ones(6), torch.cov(values.T, correction=0))
    assert min(found[1], found[4]) < 2 * RIDGE and max(found[1], found[4]) > 0.05


def test_many_at_once_keep_one_of_each_kind():
    """Several neurons of a round say the same: only one of a kind is left to the end."""
    kinds = mixed(64, 3)
    values = kinds.repeat(1, 4) + 1e-6 * mixed(256, 4)
    found = unsaid(torch.ones(256), torch.cov(values.T, correction=0))
    last = found.argsort(descending=True)[:64] % 64
    assert len(last.unique()) == 64


def test_a_constant_says_nothing_and_costs_nothing_but_its_importance():
    values = mixed(4, 1)
    values[:, 2] = 7.0
    covariance = torch.cov(values.T, correction=0)
    assert unsaid(torch.tensor([1.0, 1.0, 0.0, 1.0]), covariance)[2] == 0
    found = stand_in(covariance, torch.tensor([0]), torch.tensor([1, 2, 3]))
    assert found[1] == 0 and bool(found.isfinite().all())
    assert bool((stand_in(covariance, torch.tensor([2]), torch.tensor([0, 1, 3])) == 0).all())


def test_one_that_fired_once_is_hardly_asked():
    """In that row it says all of neuron 0; the next time it fires it would say a multiple of that."""
    values = mixed(6, 6)
    values[:, 3] = 0.0
    values[7, 3], values[7, 0] = 1e-4, 60.0
    covariance = torch.cov(values.T, correction=0)
    found = stand_in(covariance, torch.tensor([0]), torch.tensor([1, 2, 3, 4, 5]))[:, 0]
    values[:, 3] = 0.0
    without = stand_in(torch.cov(values.T, correction=0), torch.tensor([0]), torch.tensor([1, 2, 3, 4, 5]))[:, 0]
    torch.testing.assert_close(found, without, atol=0.1, rtol=0)


def test_stand_ins_are_ridge_regression():
    values, going, staying = mixed(7, 2, rank=5), torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5, 6])
    centred = (values - values.mean(0)) / values.std(0, correction=0)
    ridge = (RIDGE * len(values)) ** 0.5 * torch.eye(5, dtype=torch.float64)
    rows = torch.cat([centred[:, staying], ridge])
    wanted = torch.linalg.lstsq(rows, torch.cat([centred[:, going], torch.zeros(5, 2, dtype=torch.float64)])).solution
    deviation = values.std(0, correction=0)
    found = stand_in(torch.cov(values.T, correction=0), going, staying)
    torch.testing.assert_close(found, wanted * deviation[going] / deviation[staying][:, None])


def test_without_a_ridge_what_others_say_is_said_exactly():
    values = mixed(5, 5)
    values[:, 3] = 2 * values[:, 0] - values[:, 4] + 1
    found = stand_in(torch.cov(values.T, correction=0), torch.tensor([3]), torch.tensor([0, 1, 2, 4]), 0.0)
    torch.testing.assert_close(found[:, 0], torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=torch.float64), atol=1e-9, rtol=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(5 * 16, 3),
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows", [7, 10_000])
def test_covariances_are_torchs(layout, rows, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    model = network().double().train()
    graph = demp.trace(model, (torch.zeros(1, 2, 6, 6, dtype=torch.float64),))
    window, batches = CovarianceWindow(model, graph, graph.reads), torch.randn(2, 8, 2, 6, 6, dtype=torch.float64)
    window.open(graph.dense)
    for batch in batches:
        model(batch.contiguous(memory_format=layout))
    found = window.take(ALONE)
    with torch.no_grad():
        maps = [model[:2](batch).movedim(1, -1).reshape(-1, 6) for batch in batches]
        flat = [model[:4](batch).flatten(2).movedim(1, -1).reshape(-1, 5) for batch in batches]
    for key, parts in ((("2.weight", 0), maps), (("5.weight", 0), flat)):
        seen = torch.cat([part[:: (len(part) // rows) | 1] for part in parts])
        torch.testing.assert_close(found[key].matrix, torch.cov(seen.T, correction=0))
        assert found[key].rows == len(seen)
    assert found["5.weight", 0].places.tolist() == [
        [channel * 16 + place for channel in range(5)] for place in range(16)
    ]
    assert not window.is_open and window.take(ALONE) == {}
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_half_precision_and_large_means_are_no_loss():
    graph = demp.trace(network(), (torch.zeros(1, 2, 6, 6),))
    sums, read = Covariances(graph.dense, graph.reads), graph.reads[0]
    values = (torch.randn(64, 6, 4, 4) * torch.arange(1, 7).view(6, 1, 1) + 100).bfloat16()
    sums.add(read, values, 1)
    rows = values.double().movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(
        sums.found(ALONE)["2.weight", 0].matrix, torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-3
    )


def test_autocast_does_not_coarsen_the_products():
    graph = demp.trace(network(), (torch.zeros(1, 2, 6, 6),))
    values, found = torch.randn(64, 6, 4, 4) + 3, []
    for enabled in (False, True):
        sums = Covariances(graph.dense, graph.reads)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            sums.add(graph.reads[0], values, 1)
        found.append(sums.found(ALONE)["2.weight", 0])
    assert torch.equal(found[0].matrix, found[1].matrix) and torch.equal(found[0].mean, found[1].mean)


def test_only_what_was_asked_is_gathered():
    graph = demp.trace(network(), (torch.zeros(1, 2, 6, 6),))
    first, last = graph.reads
    sums = Covariances(graph.dense, [first])
    sums.add(last, torch.randn(3, 80), 1)
    sums.add(first, torch.randn(3, 6, 4, 4), 1)
    assert set(sums.found(ALONE)) == {("2.weight", 0)} and (sums.width(first), sums.width(last)) == (6, -1)


def test_only_modules_that_are_asked_are_watched():
    model = network().train()
    graph = demp.trace(model, (torch.zeros(1, 2, 6, 6),))
    window = CovarianceWindow(model, graph, graph.reads[:1])
    window.open(graph.dense)
    assert [bool(part._forward_pre_hooks) for part in model] == [False, False, True, False, False, False]
    window.close()


def test_of_several_places_of_a_neuron_the_one_counts_where_most_is_left():
    """A map and a vector that are read together: every place counts for itself."""

    def forward(self, x):
        sides = [self.map(x).relu().flatten(1), self.row(x[:, 0, 0]).relu()]
        return self.last(self.act(self.read(torch.cat(sides, 1))))

    both = Forward(
        forward, map=nn.Conv2d(1, 2, 1), row=nn.Linear(2, 1), read=nn.Linear(9, 4), act=nn.ReLU(), last=nn.Linear(4, 2),
    )  # fmt: skip
    graph = demp.trace(both, (torch.zeros(3, 1, 2, 2),))
    found = {taker.read.weight: taker for taker in takers(both, graph.dense)}
    read = found["read.weight"].read
    matrix = torch.cov(mixed(9, 8).T, correction=0)
    covariance = Covariance(matrix, torch.zeros(9), 400, torch.arange(9)[None])
    importance, none = torch.rand(graph.classes), graph.none_removed()
    got = unsaid_by_class(importance, graph.dense, none, {key_of(read): covariance}, list(found.values()))
    each = unsaid(importance[read.classes], matrix, ridge_of(9, 400))
    for number in read.classes.unique():
        assert got[number] == each[read.classes == number].max()


def test_too_wide_empty_and_infinite_readings_are_left_out(monkeypatch):
    graph = demp.trace(network(), (torch.zeros(1, 2, 6, 6),))
    sums, (first, last) = Covariances(graph.dense, graph.reads), graph.reads
    sums.add(first, torch.zeros(0, 6, 4, 4), 1)
    sums.add(first, torch.zeros(2, 5, 4, 4), 1)
    sums.add(last, torch.full((3, 80), torch.inf), 1)
    monkeypatch.setattr(module, "WIDEST", 4)
    sums.add(first, torch.zeros(2, 6, 4, 4), 1)
    assert sums.found(ALONE) == {}


@pytest.mark.parametrize("bias", [True, False])
def test_a_mean_that_nothing_takes_is_to_be_said_too(bias):
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4, bias=bias), nn.ReLU(), nn.Linear(4, 2))
    graph = demp.trace(model, (torch.zeros(1, 2),))
    values, (taker,) = mixed(6, 9), takers(model, graph.dense)
    seen = Covariances(graph.dense, [taker.read])
    seen.add(taker.read, values, 1)
    importance = torch.rand(graph.classes)
    got = unsaid_by_class(importance, graph.dense, graph.none_removed(), seen.found(ALONE), [taker])
    about = values - values.mean(0) if bias else values
    wanted = unsaid(importance[taker.read.classes], about.T @ about / len(about), ridge_of(6, len(values)))
    torch.testing.assert_close(got[taker.read.classes], wanted)


class NoFloat64(TorchDispatchMode):
    """But on the CPU, as beside Apple's devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        assert not any(
            isinstance(t, torch.Tensor) and t.dtype == torch.float64 and not t.is_cpu for t in tree_leaves(found)
        )
        return found


def test_a_device_without_float64_is_enough():
    with FakeTensorMode(), NoFloat64():
        for found in module.sums_of(torch.randn(7, 4, device="cuda")):
            assert (found.dtype, found.device.type) == (torch.float64, "cpu")
