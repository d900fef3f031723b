"""Joins: residual sums of two widths equal the dense sum, in every form."""

import copy
import gc
import random
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import comparing
import demp
import killing
import nets
from demp.graph.joins import JoinPlan, join, joining, model_joins, set_joins
from demp.graph.order import moved, positions, runs
from residuals import Block, cut_apart, network

CHANNELS = st.lists(st.booleans(), min_size=4, max_size=9)


# One sum ------------------------------------------------------------------------------------------------


def plan_of(here: list[bool], there: list[bool], operand: int) -> tuple[JoinPlan, Tensor, Tensor]:
    kept_branch, kept_stream = (torch.tensor(kept).nonzero().flatten() for kept in (here, there))
    where = {c: i for i, c in enumerate(kept_stream.tolist())}
    met = torch.tensor([where.get(c, -1) for c in kept_branch.tolist()], dtype=torch.long)
    return JoinPlan(operand, 1, (len(kept_branch), len(kept_stream)), runs(met)), kept_branch, kept_stream


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=9), st.integers(0, 1), st.booleans())
def test_a_join_is_the_dense_sum_of_what_is_there(kept, operand, in_place):
    here, there = [a for a, _ in kept], [b for _, b in kept]
    plan, kept_branch, kept_stream = plan_of(here, there, operand)
    branch, stream = torch.randn(2, len(kept), 3), torch.randn(2, len(kept), 3)
    stream[:, ~torch.tensor(there)] = 0
    wanted = (branch + stream).index_select(1, kept_branch)
    for indices in (None, plan.indices()):
        a, b = branch.index_select(1, kept_branch), stream.index_select(1, kept_stream)
        found = join(*((b, a) if operand == 0 else (a, b)), plan, in_place, indices)
        assert torch.equal(found, wanted)
        assert (found is a) == in_place or plan.plain
        assert torch.equal(a, wanted if in_place else branch.index_select(1, kept_branch))


@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("nhwc", [False, True])
def test_gradients_of_a_join(operand, in_place, nhwc):
    plan, *_ = plan_of([True, False, True, True, True], [True, True, True, False, True], operand)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    branch, stream = (torch.randn(2, 4, 3, 2, dtype=torch.float64).contiguous(memory_format=layout) for _ in range(2))

    def summed(branch: Tensor, stream: Tensor) -> Tensor:
        a = branch * 1.0
        return join(*((stream, a) if operand == 0 else (a, stream)), plan, in_place, None)

    given = (branch.requires_grad_(), stream.requires_grad_())
    assert torch.autograd.gradcheck(summed, given) and torch.autograd.gradgradcheck(summed, given)
    assert torch.autograd.gradcheck(lambda b: summed(b, stream.detach()), given[:1])


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize(("low", "high"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_mixed_precision_rounds_as_the_plain_sum_does(low, high, by_index):
    plan, *_ = plan_of([True] * 5, [True] * 5, 1)
    branch, stream = torch.randn(2, 5, 3).to(low), torch.randn(2, 5, 3).to(high)
    indices = plan.indices() if by_index else None
    assert torch.equal(join(branch, stream, plan, False, indices), branch + stream)
    wanted = branch.clone()
    wanted += stream
    assert torch.equal(join(branch, stream, plan, True, indices), wanted)


def test_equal_counts_of_different_channels_are_no_plain_sum():
    plan, *_ = plan_of([True, True, False], [False, True, True], 1)
    assert plan.widths == (2, 2) and not plan.plain and plan.runs == ((1, 0, 1),)


def test_another_width_than_planned_is_an_error():
    plan, *_ = plan_of([True, True, False], [False, True, True], 1)
    with pytest.raises(RuntimeError, match="planned for 2 and 2 channels and got 3 and 2"):
        join(torch.randn(1, 3, 2), torch.randn(1, 2, 2), plan, False, None)


# A whole network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["x + y", "y + x", "y += x", "y.add_(x)", "torch.add"])
def test_every_block_output_has_its_own_neurons(spelling):
    model, inputs = network(spelling=spelling)
    graph = demp.trace(model, inputs)
    assert len(graph.joins) == 3 and all(layer.coupled == () for layer in graph.layers)
    for seed in range(3):
        report = cut_apart(model, inputs, seed, 0.3)
        assert report.depths is not None and report.depths.block[0] > 0
    assert model_joins(model)


@pytest.mark.parametrize("spelling", ["x += y", "alpha"])
def test_other_sums_couple(spelling):
    model, inputs = network(spelling=spelling)
    graph = demp.trace(model, inputs)
    assert graph.joins == () and graph.layer("1").coupled == ("2.act#2", "3.act#2", "4.act#2")
    cut_apart(model, inputs)


def test_a_block_that_runs_twice_couples():
    shared = Block(6, 4)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), shared, shared, nn.Flatten(1), nn.Linear(6 * 36, 2))
    inputs = (torch.randn(2, 3, 8, 8, dtype=torch.float64),)
    nets.settle(model)
    graph = demp.trace(model, inputs)
    assert graph.joins == ()
    cut_apart(model, inputs)


def test_sums_around_sums_couple_outside():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.conv, self.act = Block(6, 4), nn.Conv2d(6, 6, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.conv(self.inner(x)) + x)

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Outer(), nn.Flatten(1), nn.Linear(6 * 36, 2))
    inputs = (torch.randn(2, 3, 8, 8, dtype=torch.float64),)
    nets.settle(model)
    assert [seen.module for seen in demp.trace(model, inputs).joins] == ["2.inner"]
    cut_apart(model, inputs)


def test_without_joins_the_stream_goes_together():
    model, inputs = network()
    graph = demp.trace(model, inputs, joins=False)
    assert graph.joins == () and graph.layer("1").coupled == ("2.act#2", "3.act#2", "4.act#2")


def test_ten_cuts_of_a_live_run_and_one_cut_end_alike():
    """Kept indices are a function of what is gone, not of the way there."""
    model, inputs = network(width=16)
    graph = demp.trace(model, inputs)
    once, rng, state = copy.deepcopy(model), random.Random(3), graph.dense
    for _ in range(10):
        dead = killing.some_dead(graph, 0.1, rng)
        killing.kill(model, demp.trace(model, inputs), present(graph, state.removed, dead))
        flags = {
            name: killing.classes_of(graph, {name: chosen})[graph.layer(name).classes] for name, chosen in dead.items()
        }
        plan = demp.surgery.plan_cut(state, flags, demp.surgery.Limits())
        before = comparing.outputs(model, inputs)
        demp.surgery.execute(demp.surgery.LiveModel(model), plan, demp.surgery.VerifyOptions(inputs))
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        state = plan.after
    whole = demp.surgery.Plan(graph.dense, state, {})
    demp.surgery.execute(demp.surgery.LiveModel(once), whole, demp.surgery.VerifyOptions(inputs, verify=False))
    assert model_joins(once) == model_joins(model)
    kept = [demp.surgery.record_of(m).kept for m in (once, model)]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0] | kept[1])


def present(graph: demp.graph.NeuronGraph, gone: Tensor, dead: dict[str, list[int]]) -> dict[str, list[int]]:
    """Neurons by their present position in each layer instead of their dense index."""
    found = {}
    state = graph.at(gone)
    for name, chosen in dead.items():
        here = state.kept(graph.layer(name).classes).tolist()
        found[name] = [here.index(i) for i in chosen if i in here]
    return {name: chosen for name, chosen in found.items() if chosen}


def test_reordering_makes_nested_sets_slices():
    """Blocks that keep ever fewer channels: every join is one run, wherever the channels were."""
    model, inputs = network(width=12)
    graph = demp.trace(model, inputs)
    gone, order = graph.none_removed(), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for name, lost in (("1", 1), ("2.act#2", 3), ("3.act#2", 6), ("4.act#2", 8)):
        gone[graph.layer(name).classes[order[:lost]]] = True
    plans = graph.at(gone).residual_adds
    assert [len(plan.runs) for sums in plans.values() for plan in sums.values()] == [1, 1, 1]
    assert [plan.kind for sums in plans.values() for plan in sums.values()] == ["slice"] * 3


def test_a_stream_with_a_channel_that_never_goes_keeps_its_order():
    """The gate reads its block's output before any activation: those neurons stay, and nothing may reorder them."""
    model, inputs = nets.residual((6, 6, 6), squeezed=True)
    model, inputs = nets.settle(model), (inputs[0].double(),)
    graph = demp.trace(model, inputs)
    assert [layer.name for layer in graph.layers if not layer.removable.any()] == ["2.act2"]
    assert graph.streams == ()
    killing.kill(model, graph, {"1": [0, 2, 3]})
    before = comparing.outputs(model, inputs)
    demp.cut(model, {"1": [0, 2, 3]}, example_inputs=inputs, graph=graph)
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
    ((plan,),) = [plans.values() for plans in model_joins(model).values()]
    assert plan.runs == ((1, 0, 1), (4, 1, 2))


def test_two_outputs_always_join_by_one_slice():
    """A stage of two blocks (ResNet-18 has four): any two sets can be put in an order with one run."""
    model, inputs = network(blocks=1, width=12)
    graph = demp.trace(model, inputs)
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        gone = graph.none_removed()
        for name in ("1", "2.act#2"):
            gone[graph.layer(name).classes[torch.rand(12, generator=draw) < 0.5]] = True
        (plan,) = graph.at(gone).residual_adds["2"].values()
        assert len(plan.runs) <= 1


@given(CHANNELS, CHANNELS)
def test_moved_takes_what_stays_from_where_it_lay(first, second):
    size = min(len(first), len(second))
    ranks = torch.randperm(size)
    before = torch.where(torch.tensor(first[:size]), ranks, -1)
    after = torch.where((before >= 0) & torch.tensor(second[:size]), ranks.flip(0), -1)
    classes = torch.arange(size)
    was = positions(classes, before)
    now = positions(classes, after)
    assert torch.equal(was[moved(was, now, size)], now)


def test_a_class_whose_modules_are_gone_is_gone():
    def made() -> weakref.ref:
        class Block(nn.Module):
            def forward(self, x, y):
                return x + y

        blocks = [Block(), Block()]
        for block in blocks:
            set_joins(block, {0: JoinPlan(1, 1, (4, 3), ((0, 0, 3),))})
        assert type(blocks[0]) is type(blocks[1]) is joining(Block) and type(blocks[0]) is not Block
        assert torch.equal(blocks[0](torch.zeros(2, 4), torch.ones(2, 3))[0], torch.tensor([1.0, 1.0, 1.0, 0.0]))
        return weakref.ref(Block)

    kind = made()
    gc.collect()
    assert kind() is None
