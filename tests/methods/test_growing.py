"""GReg-1 and GReg-2 agree with literal loops: factors, picks, phases."""

import math

import pytest
import torch
from penalty_reference import MAKES, WIDTHS, Twin, plain, run_both
from torch import Tensor, nn

import demp
from demp.errors import UsageError
from demp.methods import create
from demp.methods.greg_1 import GReg1
from demp.methods.greg_2 import GReg2, GReg2Config
from demp.methods.growing import GrowingConfig, Ramp, sizes
from demp.surgery import Limits, plan_cut
from runs import IMAGE, PlainNet, ResidualNet, build, examples, train

STEPS = 40


def growing(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    given = {"example_inputs": (examples(IMAGE),), "total_steps": STEPS} | options
    return create(name, model, optimizer, **given)


def smallest(twin: Twin, share: float) -> dict[str, list[int]]:
    """The filters with the smallest L1 norm: this share of every layer."""
    going = {}
    for name, weight in MAKES.items():
        norms = [(twin.slices(name, weight, i).abs().sum().item(), i) for i in range(WIDTHS[name])]
        going[name] = [i for _, i in sorted(norms)[: round(share * WIDTHS[name])]]
    return going


def half_squares(twin: Twin, factor_of) -> Tensor:
    """Half of every filter's factor times its squares."""
    terms = [
        0.5 * factor_of(name, i) * twin.slices(name, weight, i).square().sum()
        for name, weight in MAKES.items()
        for i in twin.left(name)
    ]
    return torch.stack(terms).sum()


def test_greg_1_is_the_literal_loop():
    """K_u = 3, delta = 0.1, tau = 0.5: growth in steps 10 to 24, stabilising to 28, then the cut."""
    model, optimizer = plain(0.02)
    twin = Twin(model, 0.02)
    pruner = growing(
        "greg-1", model, optimizer, start_at=0.25, update_every=3, delta=0.1, ceiling=0.5, stabilise_steps=4,
        target_neuron_sparsity=0.4,
    )  # fmt: skip
    picked: dict[str, list[int]] = {}
    factor = 0.0
    strengths = []

    def penalty(step: int, twin: Twin) -> Tensor | float:
        nonlocal factor
        if not 10 <= step < 29:
            return 0.0
        if (step - 10) % 3 == 0 and factor < 0.5 - 1e-9:
            factor += 0.1
        strengths.append(factor)
        assert pruner.method.ramps[0].at(step) == pytest.approx(factor, rel=1e-12)
        return half_squares(twin, lambda name, i: factor if i in picked[name] else 0.0)

    def cut(step: int, twin: Twin) -> None:
        if step == 10:
            picked.update(smallest(twin, 0.4))
        if step == 29:
            twin.remove(picked)

    run_both(pruner, twin, range(STEPS), penalty, cut)
    assert strengths == pytest.approx([0.1] * 3 + [0.2] * 3 + [0.3] * 3 + [0.4] * 3 + [0.5] * 7)
    assert [r.step for r in pruner.history if r.happened] == [29]
    assert sum(map(len, twin.gone.values())) == 2 + 2 + 3


@pytest.mark.parametrize("kept_factor", [-0.02, 0.0])
def test_greg_2_is_the_literal_loop(kept_factor: float):
    """K_u = 2, all factors grow by 0.1 up to 0.4, those of the picked by 0.3 up to 1, the others become kept_factor."""
    model, optimizer = plain(0.02)
    twin = Twin(model, 0.02)
    pruner = growing(
        "greg-2", model, optimizer, start_at=0.1, update_every=2, pick_delta=0.1, pick_ceiling=0.4, delta=0.3,
        stabilise_steps=3, kept_factor=kept_factor, target_neuron_sparsity=0.4, ranking="layer",
    )  # fmt: skip
    picked: dict[str, list[int]] = {}
    factor = 0.0

    def penalty(step: int, twin: Twin) -> Tensor | float:
        nonlocal factor
        if not 4 <= step < 19:
            return 0.0
        if step < 12:
            factor += 0.1 if step % 2 == 0 else 0.0
            return half_squares(twin, lambda name, i: factor)
        if step < 16 and step % 2 == 0:
            factor += 0.3
        return half_squares(twin, lambda name, i: factor if i in picked[name] else kept_factor)

    def cut(step: int, twin: Twin) -> None:
        if step == 12:
            picked.update(smallest(twin, 0.4))
        if step == 19:
            twin.remove(picked)

    run_both(pruner, twin, range(STEPS), penalty, cut)
    assert factor == pytest.approx(1.0)
    assert [r.step for r in pruner.history if r.happened] == [19]


# Schedules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "delta", "ceiling"), [(10, 1e-2, 1.0), (1, 0.3, 1.0), (5, 1e-3, 0.01), (7, 0.25, 1.0)]
)
def test_a_ramp_on_the_papers_clock_is_the_literal_one(every: int, delta: float, ceiling: float):
    updates = math.ceil(round(ceiling / delta, 6))
    ramp = Ramp(20, 20 + every * updates, 0.0, delta, ceiling)
    assert ramp.updates == updates
    factor = 0.0
    for step in range(20, 40 + every * updates):
        if (step - 20) % every == 0:
            factor = min(ceiling, factor + delta)
        assert ramp.at(step) == pytest.approx(factor, rel=1e-9)
    assert ramp.at(19) == 0.0


def test_a_ramp_that_is_shorter_than_its_updates_takes_several_in_a_step():
    ramp = Ramp(0, 4, 0.0, 0.1, 1.0)
    assert [ramp.at(step) for step in range(5)] == pytest.approx([0.1, 0.3, 0.6, 0.8, 1.0])
    assert Ramp(3, 3, 0.0, 0.1, 1.0).at(3) == 1.0


def test_the_defaults_are_shares_of_the_run():
    one, two = GReg1(GrowingConfig(), 1000), GReg2(GReg2Config(), 1000)
    assert (one.pick_at, one.cut_at) == (250, 700)
    assert (two.ramps[0].start, two.pick_at, two.cut_at) == (250, 350, 700)
    assert [s for s in range(1001) if one.is_due(s)] == [250, 700]
    assert [s for s in range(1001) if two.is_due(s)] == [250, 350, 700]
    assert one.ramps[0].updates == 10_000
    assert [ramp.updates for ramp in two.ramps] == [1000, 9900]
    for total in range(1, 30):
        for method in (GReg1(GrowingConfig(), total), GReg2(GReg2Config(), total)):
            assert 0 <= method.ramps[0].start <= method.pick_at <= method.cut_at <= total


def test_the_papers_clock_on_cifar():
    settings = {"start_at": 0.0, "update_every": 10, "stabilise_steps": 5000}
    assert GReg1(GrowingConfig(**settings), 200_000).cut_at == 105_000
    two = GReg2(GReg2Config(**settings), 200_000)
    assert (two.pick_at, two.cut_at) == (10_000, 114_000)
    assert two.ramps[0].at(9_999) == pytest.approx(0.01)
    assert two.ramps[1].at(10_000) == pytest.approx(0.0101)


def test_phases_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"the phases take 1\.3 of the run"):
        GReg1(GrowingConfig(start_at=0.8, grow=0.45), 100)
    with pytest.raises(UsageError, match="the neurons would go after 105250 of 1000 steps; lower update_every"):
        GReg1(GrowingConfig(update_every=10, stabilise_steps=5000), 1000)


@pytest.mark.parametrize(
    "options",
    [
        {"target_neuron_sparsity": 0.0}, {"ranking": "local"}, {"start_at": -0.1}, {"grow": 1.1}, {"delta": 0.0},
        {"stabilise": math.nan}, {"ceiling": math.inf}, {"update_every": 0}, {"stabilise_steps": -1}, {"pick": 2.0},
        {"penalty_in": "weights"}, {"pick_delta": -1e-5}, {"pick_ceiling": 1.0}, {"kept_factor": math.nan},
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(options: dict):
    (name,) = options
    with pytest.raises(UsageError, match=name):
        GReg2Config(**options)


# Who is pushed, and who goes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["greg-1", "greg-2"])
def test_excluded_layers_and_what_a_multiple_holds_back_are_not_pushed(name: str):
    model, optimizer = plain(0.02)
    pruner = growing(name, model, optimizer, exclude=("act1",), multiple=2, target_neuron_sparsity=0.5)
    train(model, optimizer, IMAGE, range(12))
    one, two, three = (pruner.graph.layer(n).classes for n in ("act1", "act2", "act3"))
    pushed = pruner.method._pushed
    assert not bool(pushed[one].any()) and not bool(pushed[0])
    if name == "greg-2":
        assert bool(pushed[two].all()) and bool(pushed[three].all())
    train(model, optimizer, IMAGE, range(12, STEPS))
    assert torch.equal(pruner.state.removed, pruner.method._pushed)
    assert not bool(pruner.state.removed[one].any())
    assert int((~pruner.state.removed[two]).sum()) % 2 == 0 and int((~pruner.state.removed[three]).sum()) % 2 == 0


def test_sizes_are_means_over_all_weights_that_make_a_neuron():
    model = build(ResidualNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = growing("greg-1", model, optimizer, joins=False)
    found = sizes(pruner._view)
    both = torch.cat([model.stem.weight.flatten(1), model.conv2.weight.flatten(1)], 1).abs().mean(1)
    torch.testing.assert_close(found[pruner.graph.layer("act2").classes], both.detach())
    inner = model.conv1.weight.abs().mean((1, 2, 3)).detach()
    torch.testing.assert_close(found[pruner.graph.layer("act1").classes], inner)


def test_a_global_ranking_compares_means():
    model, optimizer = plain(0.02)
    model.fc.weight.data *= 1e-3
    pruner = growing("greg-1", model, optimizer, start_at=0.0, ranking="global", target_neuron_sparsity=6 / 18)
    picked = pruner.method._pushed
    assert [int(picked[pruner.graph.layer(n).classes].sum()) for n in ("act1", "act2", "act3")] == [0, 0, 6]


@pytest.mark.parametrize("name", ["greg-1", "greg-2"])
def test_what_was_pushed_is_small_when_it_goes(name: str):
    model, optimizer = plain(0.05)
    pruner = growing(name, model, optimizer, total_steps=150, start_at=0.05, grow=0.6, stabilise=0.2, ceiling=2.0)
    train(model, optimizer, IMAGE, range(pruner.method.cut_at - 1))
    for layer, weight in (("act1", model.conv1.weight), ("act2", model.conv2.weight), ("act3", model.fc.weight)):
        pushed = pruner.method._pushed[pruner.graph.layer(layer).classes]
        largest = weight.detach().abs().flatten(1).amax(1)
        assert 0 < int(pushed.sum()) < len(pushed)
        assert float(largest[pushed].max()) < 0.5 * float(largest[~pushed].min())
    train(model, optimizer, IMAGE, range(pruner.method.cut_at - 1, 150))
    report = next(r for r in pruner.history if r.happened)
    assert report.difference is not None and report.difference < 1e-12
    assert pruner.finish().removed == 0


@pytest.mark.parametrize("joins", [True, False])
def test_residual_streams_are_cut_and_proven(joins: bool):
    model = build(ResidualNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = growing("greg-2", model, optimizer, joins=joins)
    train(model, optimizer, IMAGE, range(STEPS))
    report = next(r for r in pruner.history if r.happened)
    assert report.removed == 10
    assert report.difference is not None and report.difference < 1e-12


def test_a_run_that_ends_early_removes_what_it_would_have_picked():
    model, optimizer = plain(0.02)
    pruner = growing("greg-1", model, optimizer, target_neuron_sparsity=0.4)
    train(model, optimizer, IMAGE, range(5))
    assert pruner.finish().removed == 7


@pytest.mark.parametrize("name", ["greg-1", "greg-2"])
def test_before_the_first_phase_it_is_plain_training_to_the_bit(name: str):
    (ours, our_optimizer), (theirs, their_optimizer) = plain(0.02), plain(0.02)
    growing(name, ours, our_optimizer)
    losses = train(ours, our_optimizer, IMAGE, range(10))
    assert losses == train(theirs, their_optimizer, IMAGE, range(10))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_network_that_no_weight_makes_is_refused():
    model, optimizer = plain(0.02)
    with pytest.raises(UsageError, match="greg-1 pushes the weights that make neurons"):
        growing("greg-1", model, optimizer, include=("nobody",))


def test_picks_are_what_a_cut_would_take():
    model, optimizer = plain(0.02)
    pruner = growing("greg-1", model, optimizer, start_at=0.0, multiple=4)
    picked = pruner.method._pushed
    chosen = {layer.name: picked[layer.classes] for layer in pruner.graph.layers}
    again = plan_cut(pruner.state, chosen, Limits(multiple=4))
    assert torch.equal(again.after.removed, picked)
    assert isinstance(model, PlainNet)
