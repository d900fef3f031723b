"""Noise: how much, how it is drawn, and that it lands on live neurons only."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.methods.demp import DemonPruning
from demp.methods.demp_config import DemPConfig
from demp.regularization.noise import Noise, Target, add_noise
from runs import (
    IMAGE,
    VECTOR,
    Mlp,
    PlainNet,
    ResidualNet,
    build,
    examples,
    kill,
    kill_linear,
    loss_of,
    same,
    train,
)  # fmt: skip

# Drawing ------------------------------------------------------------------------------------------------


def drawn(*shapes: tuple[int, ...], seed: int = 0, step: int = 0, std: float = 1.0) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    add_noise([Target(p, None) for p in parameters], Noise(std), seed=seed, step=step)
    return [p.detach() for p in parameters]


def test_one_generator_of_seed_and_step_serves_the_parameters_in_order():
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 11)
    expected = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (4,), (20, 2))]
    for found, deviates in zip(drawn((3, 5), (4,), (20, 2), seed=7, step=11, std=0.5), expected, strict=True):
        assert torch.equal(found, 0.5 * deviates)


def test_the_std_is_a_standard_deviation():
    (sample,) = drawn((400, 500), std=0.02)
    assert sample.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(sample.mean().item()) < 4 * 0.02 / math.sqrt(sample.numel())


def test_seed_and_step_decide_and_nothing_else():
    assert torch.equal(drawn((9,), seed=1, step=2)[0], drawn((9,), seed=1, step=2)[0])
    assert not torch.equal(drawn((9,), seed=1, step=2)[0], drawn((9,), seed=1, step=3)[0])
    assert not torch.equal(drawn((9,), seed=1, step=2)[0], drawn((9,), seed=2, step=2)[0])


def test_a_mask_and_a_factor_per_parameter():
    weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    mask = torch.tensor([True, False, True, False]).view(4, 1)
    add_noise([Target(weight, mask, factor=10.0)], Noise(0.1), seed=0, step=0)
    (plain,) = drawn((4, 3))
    torch.testing.assert_close(weight.detach(), plain * mask, rtol=1e-14, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_does_not_matter(layout: torch.memory_format):
    weight = nn.Parameter(torch.zeros(4, 3, 2, 2, dtype=torch.float64).to(memory_format=layout))
    add_noise([Target(weight, None)], Noise(1.0), seed=0, step=0)
    assert torch.equal(weight.detach(), drawn((4, 3, 2, 2))[0])


def test_the_global_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    drawn((100,))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("std", [math.nan, -1e-3, math.inf])
def test_nonsense_is_refused(std: float):
    with pytest.raises(UsageError, match="noise std"):
        Noise(std)


def test_variance_is_an_option():
    step = 26  # the peak: 0.3 of a span of 87 steps
    std = DemonPruning(DemPConfig(peak_noise_std=4e-4), 100)
    variance = DemonPruning(DemPConfig(peak_noise_std=4e-4, noise_is_variance=True), 100)
    assert std.noise_std(step) == pytest.approx(4e-4, rel=1e-3)
    assert variance.noise_std(step) == pytest.approx(0.02, rel=1e-3)


TINY = 1e-300
"""A learning rate that moves weights by less than 1e-100; at 0 the optimizer moves nothing, so there is no noise."""


# In training --------------------------------------------------------------------------------------------


def attached(model: nn.Module, *, lr: float = TINY, **options) -> tuple[torch.optim.Optimizer, demp.Pruner]:
    """DemP with constant noise and a penalty; at a tiny learning rate every change of a weight is noise."""
    shape = VECTOR if isinstance(model, Mlp) else IMAGE
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    settings = {
        "total_steps": 100, "dynamic": False, "schedule": "constant", "peak_noise_std": 0.01, "peak_strength": 0.3,
        "batches": [examples(shape)], **options,
    }  # fmt: skip
    return optimizer, demp.DemP(model, optimizer, example_inputs=(examples(shape),), **settings)


def moved(model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> dict[str, Tensor]:
    """Which entries one training step changes."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, VECTOR if isinstance(model, Mlp) else IMAGE, range(step, step + 1))
    return {name: (p.detach() - before[name]).abs() > 1e-100 for name, p in model.named_parameters()}


def expected_rows(model: nn.Module, dead: dict[str, list[int]]) -> dict[str, Tensor]:
    """All entries, but for the rows of dead neurons."""
    rows = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for name, neurons in dead.items():
        rows[name][neurons] = False
    return rows


def assert_equal_masks(found: dict[str, Tensor], expected: dict[str, Tensor]):
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not wrong


def plain_net_with_dead_neurons() -> tuple[PlainNet, dict[str, list[int]]]:
    """Dead: two channels behind a norm, one behind a conv with bias and a norm, two linear outputs with a bias."""
    model = build(PlainNet)
    kill(model.norm1, [1, 4])
    kill(model.norm2, [0])
    kill_linear(model.fc, [2, 3])
    for neuron in (i for i in range(7) if i not in (2, 3)):
        model.fc.bias.data[neuron] = 5.0  # certainly alive
    return model, {
        "conv1.weight": [1, 4], "norm1.weight": [1, 4], "norm1.bias": [1, 4],
        "conv2.weight": [0], "conv2.bias": [0], "norm2.weight": [0], "norm2.bias": [0],
        "fc.weight": [2, 3], "fc.bias": [2, 3],
    }  # fmt: skip


def test_neurons_without_a_data_gradient_get_exactly_nothing():
    model, dead = plain_net_with_dead_neurons()
    optimizer, _ = attached(model)
    assert_equal_masks(moved(model, optimizer), expected_rows(model, dead))


def test_linear_layers_without_a_bias_are_judged_by_their_weights():
    model = build(Mlp, bias=False)
    with torch.no_grad():
        model.fc1.weight[0] = 1.0
        model.fc2.weight.abs_()
        model.fc2.weight[[0, 7]] *= -1  # never positive on what a ReLU gives
    optimizer, _ = attached(model)
    assert_equal_masks(moved(model, optimizer), expected_rows(model, {"fc2.weight": [0, 7]}))


def test_a_residual_stream_is_judged_where_it_is_written():
    model = build(ResidualNet)
    kill(model.stem_norm, [2])  # the stem is silent in channel 2; the block still writes it
    with torch.no_grad():
        model.norm2.bias[:] = 3.0
    optimizer, _ = attached(model)
    dead = {name: [2] for name in ("stem.weight", "stem_norm.weight", "stem_norm.bias")}
    found = moved(model, optimizer)
    expected = expected_rows(model, dead)
    assert_equal_masks({n: found[n] for n in dead}, {n: expected[n] for n in dead})
    assert bool(found["conv2.weight"].all())
    assert bool(found["norm2.bias"].all())


class ThreeBranches(nn.Module):
    """One activation over three concatenated branches."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(2, 3, 1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [norm(conv(x)) for conv, norm in zip(self.branches, self.norms, strict=True)]
        return self.head(F.relu(torch.cat(parts, 1)).mean((2, 3)))


def test_every_branch_of_a_concatenation_is_judged():
    model = build(ThreeBranches)
    for norm in model.norms:
        kill(norm, [1])
    optimizer, _ = attached(model)
    dead = {f"{kind}.{i}.{p}": [1] for i in range(3) for kind, p in
            (("branches", "weight"), ("norms", "weight"), ("norms", "bias"))}  # fmt: skip
    assert_equal_masks(moved(model, optimizer), expected_rows(model, dead))


class Siamese(nn.Module):
    """One layer with a norm, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.fc(x))) - F.relu(self.norm(self.fc(-x))))


def test_parameters_that_are_used_twice_get_noise_once():
    model = build(Siamese)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY)
    settings = {"schedule": "constant", "peak_noise_std": 0.01, "total_steps": 9, "dynamic": False, "noise_on": "all"}
    demp.DemP(model, optimizer, example_inputs=(examples(VECTOR),), **settings)
    train(model, optimizer, VECTOR, range(1))
    order = ("fc.weight", "fc.bias", "norm.weight", "norm.bias", "head.weight", "head.bias")
    deviates = dict(zip(order, drawn(*(before[name].shape for name in order)), strict=True))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach() - before[name], 0.01 * deviates[name], rtol=1e-9, atol=1e-14)


def test_a_frozen_shift_is_no_witness_and_gets_no_noise():
    model, _ = plain_net_with_dead_neurons()
    model.norm1.bias.requires_grad_(False)
    optimizer, _ = attached(model)
    found = moved(model, optimizer)
    assert not bool(found["norm1.bias"].any())
    assert found["conv1.weight"].flatten(1).all(1).tolist() == [True, False, True, True, False, True]
    assert found["norm1.weight"].tolist() == [True, False, True, True, False, True]


def test_weight_gradient_masks_entry_by_entry():
    model, _ = plain_net_with_dead_neurons()
    twin = copy.deepcopy(model)
    optimizer, _ = attached(model, live_mask="weight-gradient")
    found = moved(model, optimizer)
    loss_of(twin, 0, IMAGE).backward()
    data = {name: p.grad != 0 for name, p in twin.named_parameters() if p.grad is not None}
    assert_equal_masks(found, data)
    assert not bool(found["conv2.weight"][:, [1, 4]].any())  # what reads a dead neuron has no gradient either


def test_weight_gradient_leaves_unused_parameters_alone():
    class Unused(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(3))

    model = build(Unused)
    optimizer, _ = attached(model, live_mask="weight-gradient")
    assert not bool(moved(model, optimizer)["spare"].any())


def test_last_check_masks_what_the_last_check_found_dead():
    model, dead = plain_net_with_dead_neurons()
    optimizer, pruner = attached(
        model, live_mask="last-check", dynamic=True, period=2, exclude=("*",), batches=[examples(IMAGE)]
    )
    everything = expected_rows(model, {})
    assert_equal_masks(moved(model, optimizer, 0), everything)
    assert_equal_masks(moved(model, optimizer, 1), everything)  # the check follows the noise of step 2
    assert pruner.history[-1].removed == 0
    assert_equal_masks(moved(model, optimizer, 2), expected_rows(model, dead))


def test_all_means_all_and_off_means_off():
    for noise_on, std in (("all", 0.01), ("off", 0.01), ("live", 0.0)):
        model, _ = plain_net_with_dead_neurons()
        optimizer, _ = attached(model, noise_on=noise_on, peak_noise_std=std)
        found = moved(model, optimizer)
        assert {bool(mask.all()) for mask in found.values()} == {noise_on == "all"}
        assert {bool(mask.any()) for mask in found.values()} == {noise_on == "all"}


def test_weights_only_spares_scales_shifts_and_biases():
    model, dead = plain_net_with_dead_neurons()
    optimizer, _ = attached(model, noise_weights_only=True)
    expected = expected_rows(model, dead)
    for name, p in model.named_parameters():
        if p.dim() < 2:
            expected[name][:] = False
    assert_equal_masks(moved(model, optimizer), expected)


def test_parameters_that_make_no_neurons_can_be_spared():
    model, dead = plain_net_with_dead_neurons()
    optimizer, _ = attached(model, noise_others=False)
    expected = expected_rows(model, dead)
    expected["head.weight"][:] = expected["head.bias"][:] = False
    assert_equal_masks(moved(model, optimizer), expected)


@pytest.mark.parametrize("live_mask", ["neuron-gradient", "weight-gradient", "last-check"])
def test_noise_goes_on_after_a_cut(live_mask: str):
    model, _ = plain_net_with_dead_neurons()
    optimizer, pruner = attached(model, live_mask=live_mask, dynamic=True, period=2)
    train(model, optimizer, IMAGE, range(2))
    assert pruner.history[-1].removed >= 5
    assert model.conv1.out_channels == 4
    kill(model.norm1, [0])  # another one dies; position 0 is neuron 0
    dead = {} if live_mask == "last-check" else {name: [0] for name in ("conv1.weight", "norm1.weight", "norm1.bias")}
    found, expected = moved(model, optimizer, 2), expected_rows(model, dead)
    for name in ("conv1.weight", "norm1.weight", "norm1.bias"):
        assert torch.equal(found[name], expected[name])
    assert all(math.isfinite(loss) for loss in train(model, optimizer, IMAGE, range(3, 5)))


def test_the_optimizers_state_never_sees_the_noise():
    noisy, still = build(PlainNet), build(PlainNet)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (noisy, still)]
    for model, optimizer, std in zip((noisy, still), optimizers, (0.05, 0.0), strict=True):
        demp.DemP(
            model, optimizer, example_inputs=(examples(IMAGE),), total_steps=10, dynamic=False,
            peak_noise_std=std, schedule="constant",
        )  # fmt: skip
        train(model, optimizer, IMAGE, range(1))
    for mine, other in zip(noisy.parameters(), still.parameters(), strict=True):
        assert not torch.equal(mine, other)
        for key, value in optimizers[1].state[other].items():
            assert torch.equal(optimizers[0].state[mine][key], value)


def test_replicas_draw_the_same_and_the_global_random_state_is_left_alone():
    models = [build(PlainNet), build(PlainNet)]
    states = []
    for model in models:
        optimizer, _ = attached(model, lr=0.05)
        torch.rand(3)  # replicas need not be in the same random state
        before = torch.random.get_rng_state()
        train(model, optimizer, IMAGE, range(4))
        states.append(torch.equal(torch.random.get_rng_state(), before))
    assert same(*models)
    assert states == [True, True]


def test_times_lr_follows_each_groups_rate():
    changes = []
    for options in ({"peak_noise_std": 0.0}, {}, {"noise_times_lr": True}):
        model = build(Mlp)
        optimizer = torch.optim.SGD(
            [{"params": list(model.fc1.parameters()), "lr": 0.1},
             {"params": [*model.fc2.parameters(), *model.head.parameters()], "lr": 0.01}]
        )  # fmt: skip
        settings = {"schedule": "constant", "peak_noise_std": 0.01, "total_steps": 10, "dynamic": False, **options}
        demp.DemP(model, optimizer, example_inputs=(examples(VECTOR),), **settings)
        train(model, optimizer, VECTOR, range(1))
        changes.append({name: p.detach().clone() for name, p in model.named_parameters()})
    still, plain, scaled = changes
    for name in still:
        rate = 0.1 if name.startswith("fc1") else 0.01
        torch.testing.assert_close(
            scaled[name] - still[name], rate * (plain[name] - still[name]), rtol=1e-9, atol=1e-14
        )


def test_the_noise_follows_its_own_schedule():
    model = build(PlainNet)
    method = attached(model, noise_schedule="warm-up", schedule="one-cycle", span=0.5)[1].method
    assert method.strength(0) == pytest.approx(0.3 / 25)
    assert [method.noise_std(step) for step in (0, 25, 50, 90)] == pytest.approx([1e-8, 0.005, 0.01, 0.01], rel=1e-4)
