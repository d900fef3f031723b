"""Penalties on slices that belong to neurons: gradients against autograd of the formula, before and after cuts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import comparing
import demp
import nets
from demp.errors import UsageError
from demp.regularization.penalties import Penalty, add_slice_gradient, slice_value
from demp.regularization.slices import Slices
from demp.regularization.targets import Penalised
from runs import IMAGE, PlainNet, ResidualNet, build, examples


def weight(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def written_group_lasso(w: Tensor, axis: int, classes: list[int]) -> Tensor:
    """The sum over classes of the root of the sum of squares of their entries."""
    total = torch.zeros((), dtype=w.dtype)
    for c in sorted(set(classes) - {0}):
        mine = w.index_select(axis, torch.tensor([i for i, d in enumerate(classes) if d == c]))
        if bool((mine != 0).any()):
            total = total + mine.square().sum().sqrt()
    return total


def written_l2(w: Tensor, axis: int, classes: list[int], factors: list[float]) -> Tensor:
    """Half of each class's factor times the sum of squares of its entries."""
    total = torch.zeros((), dtype=w.dtype)
    for i, c in enumerate(classes):
        if c:
            total = total + 0.5 * factors[c] * w.select(axis, i).square().sum()
    return total


shapes = st.sampled_from([(6, 4), (6, 3, 2, 2), (6,), (2, 6, 3)])


@settings(deadline=None, max_examples=60)
@given(shapes, st.lists(st.integers(0, 4), min_size=6, max_size=6), st.integers(0, 999), st.booleans(), st.booleans())
def test_gradients_and_values_are_those_of_the_formulas(shape, classes, seed, some_zero, grouped):
    axis = shape.index(6)
    ours, theirs = weight(*shape, seed=seed), weight(*shape, seed=seed)
    if some_zero:
        for w in (ours, theirs):
            w.data.index_fill_(axis, torch.tensor([0, 1, 2]), 0.0)
    factors = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.2
    slices = [Slices(ours, axis, torch.tensor(classes))]
    if grouped:
        penalty, written = Penalty("group-lasso", 0.3, "channels"), written_group_lasso(theirs, axis, classes)
    else:
        penalty = Penalty("l2", 0.3, "producers", factors)
        written = written_l2(theirs, axis, classes, factors.tolist())
    torch.testing.assert_close(slice_value(slices, penalty), 0.3 * written, rtol=1e-12, atol=1e-15)
    add_slice_gradient(slices, penalty)
    if written.requires_grad:
        (0.3 * written).backward()
    expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
    torch.testing.assert_close(ours.grad, expected, rtol=1e-12, atol=1e-15)
    value = slice_value(slices, penalty)
    (through_loss,) = torch.autograd.grad(value, ours)
    torch.testing.assert_close(through_loss, expected, rtol=1e-12, atol=1e-15)


def test_both_axes_of_a_weight_add_up():
    ours, theirs = weight(4, 3, 2, 2), weight(4, 3, 2, 2)
    classes = (torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7]))
    add_slice_gradient([Slices(ours, a, c) for a, c in enumerate(classes)], Penalty("group-lasso", 0.7, "channels"))
    rows = theirs.square().sum((1, 2, 3)).sqrt().sum() + theirs.square().sum((0, 2, 3)).sqrt().sum()
    (0.7 * rows).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=0)


def test_a_group_that_is_zero_is_pulled_nowhere_and_a_tiny_one_no_harder_than_any():
    w = nn.Parameter(torch.tensor([[0.0, 0.0], [3e-39, 0.0], [3.0, 4.0]]))
    add_slice_gradient([Slices(w, 0, torch.tensor([1, 2, 3]))], Penalty("group-lasso", 1.0, "channels"))
    assert w.grad is not None
    assert w.grad[0].tolist() == [0.0, 0.0]
    assert bool(w.grad.isfinite().all()) and float(w.grad[1].norm()) <= 1.0
    torch.testing.assert_close(w.grad[2], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)])
@pytest.mark.parametrize(("kind", "on"), [("group-lasso", "channels"), ("l2", "producers")])
def test_the_loss_scale_multiplies_what_is_added_to_what_is_there(kind: str, on: str, scale: float | Tensor):
    plain, scaled = weight(4, 3), weight(4, 3)
    scaled.grad = torch.ones_like(scaled)
    for w, by in ((plain, None), (scaled, scale)):
        add_slice_gradient([Slices(w, 0, torch.arange(1, 5))], Penalty(kind, 0.3, on), by)
    assert plain.grad is not None
    torch.testing.assert_close(scaled.grad, 1 + 1024.0 * plain.grad, rtol=1e-14, atol=0)


def test_frozen_weights_and_strength_zero_add_nothing():
    frozen, free = weight(4, 3), weight(4, 3)
    frozen.requires_grad_(False)
    add_slice_gradient([Slices(frozen, 0, torch.arange(1, 5))], Penalty("group-lasso", 0.3, "channels"))
    add_slice_gradient([Slices(free, 0, torch.arange(1, 5))], Penalty("l2", 0.0, "producers"))
    assert frozen.grad is None and free.grad is None
    assert slice_value([], Penalty("l2", 1.0, "producers")).item() == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("group-lasso", 1.0, "scales"), "does not act on 'scales'"),
        (("lasso", 1.0, "channels"), "does not act on 'channels'"),
        (("lasso", 1.0, "producers"), "does not act on 'producers'"),
        (("l2", 1.0, "scales", torch.ones(3)), "penalty factors"),
        (("group-lasso", math.nan, "channels"), "strength"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple, words: str):
    with pytest.raises(UsageError, match=words):
        Penalty(*arguments)


# Which slices -------------------------------------------------------------------------------------------


def axes_of(model: nn.Module, graph: demp.NeuronGraph, on: str) -> dict[tuple[str, int], list[int]]:
    names = {id(p): name for name, p in model.named_parameters()}
    slices = Penalised(model, graph, on).slices(graph.dense)
    return {(names[id(s.parameter)], s.axis): s.classes.tolist() for s in slices}


def test_inputs_of_the_first_layer_and_outputs_of_the_last_are_no_channels():
    model = build(PlainNet)
    graph = demp.trace(model, (examples(IMAGE),))
    one, two, three = (graph.layer(name).classes.tolist() for name in ("act1", "act2", "act3"))
    assert axes_of(model, graph, "channels") == {
        ("conv1.weight", 0): one,
        ("conv2.weight", 0): two,
        ("conv2.weight", 1): one,
        ("fc.weight", 0): three,
        ("fc.weight", 1): [c for c in two for _ in range(4)],
        ("head.weight", 1): three,
    }
    made = {("conv1.weight", 0): one, ("conv2.weight", 0): two, ("fc.weight", 0): three}
    assert axes_of(model, graph, "producers") == made


def test_depthwise_weights_are_no_channels():
    model, inputs = nets.separable()
    found = axes_of(model, demp.trace(model, inputs), "channels")
    assert {name for name, _ in found} == {
        "expand.weight", "reduce.weight", "excite.weight", "project.weight", "head.weight"
    }  # fmt: skip


@pytest.mark.parametrize("on", ["channels", "producers"])
@pytest.mark.parametrize("joins", [True, False])
def test_after_a_cut_every_weight_keeps_the_slope_of_its_own_class(on: str, joins: bool):
    """Also where a stream's channels are put in another order."""
    model = build(ResidualNet)
    graph = demp.trace(model, (examples(IMAGE),), joins=joins)
    acts = ("stem_act", "act1", "act2")
    dead = {name: torch.zeros(graph.layer(name).width, dtype=torch.bool) for name in acts}
    dead["act1"][[0, 5]] = True
    dead["act2"][[1, 4]] = True
    dead["stem_act"][[4, 2] if joins else [1, 4]] = True
    gone = graph.none_removed()
    for name, flags in dead.items():
        gone[graph.layer(name).classes[flags]] = True
    factors = torch.rand(graph.classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors[0] = 0.0
    penalty = Penalty("group-lasso", 0.5, on) if on == "channels" else Penalty("l2", 0.5, on, factors)
    penalised = Penalised(model, graph, on)
    penalised.add_gradient(penalty, graph.dense, None)
    with torch.no_grad():  # what goes is zero, so that the norms of what stays are the same before and after
        for slot in graph.slots:
            tensor = comparing.tensors_of(model)[slot.tensor]
            if slot.tensor.endswith("weight"):
                tensor.index_fill_(slot.axis, gone[slot.classes].nonzero().flatten(), 0.0)
    for p in model.parameters():
        p.grad = None
    penalised.add_gradient(penalty, graph.dense, None)
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    from demp.surgery import LiveModel, Plan, VerifyOptions, execute, record_of

    plan = Plan(graph.dense, graph.at(gone), {})
    execute(LiveModel(model, base=record_of(model)), plan, VerifyOptions((examples(IMAGE),), verify=False))
    for p in model.parameters():
        p.grad = None
    penalised.add_gradient(penalty, plan.after, None)
    kept = record_of(model).kept
    for name, parameter in model.named_parameters():
        assert (name in before) == (parameter.grad is not None)
        if name in before:
            expected = before[name]
            for (owner, axis), indices in kept.items():
                expected = expected.index_select(axis, indices) if owner == name else expected
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-15)
