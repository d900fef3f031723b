"""Magnitude, saliency, SET and RigL against their literal twins, and what each of them promises."""

import math

import pytest
import torch
from mask_reference import Run, at_density, cubic_exact, cubic_plus_one, erk, ranked, rewired
from torch import Tensor, nn

import demp
from demp.errors import UsageError
from demp.masking.distributions import kept
from demp.methods.gradual import Gradual, cubic, progress
from demp.methods.rewiring import Rewiring
from demp.methods.sparse import UpdateSteps, dropped, grown, random_masks, uniform_scores
from runs import IMAGE, PlainNet, ResidualNet, batch_at, build, examples, loss_of, same, train
from thinning import covering

GRADUAL, REWIRING = ("magnitude", "saliency"), ("set", "rigl")
EVERY_MASK_METHOD = (*GRADUAL, *REWIRING)
TOTAL = 30
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
}
WEIGHTS = ("conv1.weight", "conv2.weight", "fc.weight", "head.weight")


def pruner_for(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    given = {"example_inputs": (examples(IMAGE),), "total_steps": TOTAL, "mask_every": 3, "weight_sparsity": 0.7}
    return demp.methods.create(name, model, optimizer, **(given | options))


def parts(name: str, optimizer: str = "sgd", kind: type[nn.Module] = PlainNet, **options):
    model = build(kind)
    made = OPTIMIZERS[optimizer](model)
    return model, made, pruner_for(name, model, made, **options)


def gradual_update(name: str, distribution: str, updates: list[int], window: tuple[int, int], form: str):
    """The twin's update of one gradual method."""

    def update(step: int, parameters: dict[str, nn.Parameter], masks: dict[str, Tensor]):
        if step not in updates:
            return None
        due = cubic_exact(step, updates, 0.7) if form == "exact" else cubic_plus_one(step, *window, 0.7)
        scores = {}
        for key in WEIGHTS:
            p = parameters[key]
            scores[key] = p.detach().abs() if name == "magnitude" else (p.detach() * p.grad).abs()
        if due == 0:
            return None
        if distribution.startswith("global"):
            if distribution == "global-normalised":
                scores = {key: s / (s.pow(2).sum().sqrt() + 1e-8) for key, s in scores.items()}
            flat = torch.cat([s.flatten() for s in scores.values()])
            chosen = ranked(flat, round(len(flat) * (1 - due))).split([s.numel() for s in scores.values()])
            return {key: c.view(scores[key].shape) for (key, c) in zip(scores, chosen, strict=True)}
        shapes = {key: tuple(s.shape) for key, s in scores.items()}
        final = erk(shapes, 0.7) if distribution == "erk" else dict.fromkeys(shapes, 0.3)
        shares = {key: 1 - (1 - density) * due / 0.7 for key, density in final.items()}
        return {key: ranked(s, at_density(s.numel(), shares[key])) for key, s in scores.items()}

    return update


def assert_equal_runs(mine: nn.Module, theirs: nn.Module, pruner: demp.Pruner, run: Run) -> None:
    for key in WEIGHTS:
        kept_here = pruner.masks.kept.get(key, torch.ones_like(mine.get_parameter(key), dtype=torch.bool))
        kept_there = run.masks.get(key, torch.ones_like(kept_here))
        assert torch.equal(kept_here, kept_there), key
    for (key, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=key)


@pytest.mark.parametrize(
    ("name", "distribution", "optimizer", "form"),
    covering(GRADUAL, ("uniform", "erk", "global", "global-normalised"), OPTIMIZERS, ("exact", "plus-one")),
)
def test_gradual_masks_are_the_twins_step_by_step(name: str, distribution: str, optimizer: str, form: str):
    model, mine, pruner = parts(name, optimizer, distribution=distribution, cubic=form)
    twin = build(PlainNet)
    updates = [9, 12, 15, 18, 21, 24]
    update = gradual_update(name, distribution, updates, (9, 24), form)
    run = Run(twin, OPTIMIZERS[optimizer](twin), lambda m, step: loss_of(m, step, IMAGE), update)
    for step in range(TOTAL):
        train(model, mine, IMAGE, range(step, step + 1))
        run.step(step)
        assert_equal_runs(model, twin, pruner, run)
    assert pruner.masks.masked() == sum(int((~m).sum()) for m in run.masks.values()) > 0


@pytest.mark.parametrize(
    ("name", "schedule", "distribution", "optimizer"),
    covering(REWIRING, ("constant", "cosine"), ("uniform", "erk"), OPTIMIZERS, together=2),
)
def test_rewired_masks_are_the_twins_step_by_step(name: str, schedule: str, distribution: str, optimizer: str):
    model, mine, pruner = parts(name, optimizer, distribution=distribution, drop_schedule=schedule, seed=5)
    twin = build(PlainNet)

    def update(step: int, parameters: dict[str, nn.Parameter], masks: dict[str, Tensor]):
        if step not in (9, 12, 15, 18, 21, 24):
            return None
        fraction = 0.3 if schedule == "constant" else 0.15 * (1 + math.cos(math.pi * step / 24))
        new = {}
        for key, mask in masks.items():
            p = parameters[key]
            growth = p.grad.abs() if name == "rigl" else uniform_scores(p, 5, step, key)
            new[key] = rewired(mask, p.detach(), growth, fraction)
        return new

    shapes = {key: tuple(twin.get_parameter(key).shape) for key in WEIGHTS}
    final = erk(shapes, 0.7) if distribution == "erk" else dict.fromkeys(shapes, 1 - 0.7)
    run = Run(twin, OPTIMIZERS[optimizer](twin), lambda m, step: loss_of(m, step, IMAGE), update)
    run.begin({
        key: ranked(uniform_scores(twin.get_parameter(key), 5, -1, key), at_density(math.prod(shape), final[key]))
        for key, shape in shapes.items() if final[key] < 1
    })  # fmt: skip
    counts = {key: int(mask.sum()) for key, mask in run.masks.items()}
    changed = 0
    for step in range(TOTAL):
        before = {key: mask.clone() for key, mask in run.masks.items()}
        train(model, mine, IMAGE, range(step, step + 1))
        run.step(step)
        assert_equal_runs(model, twin, pruner, run)
        assert {key: int(mask.sum()) for key, mask in pruner.masks.kept.items()} == counts
        changed += sum(int((mask != before[key]).sum()) for key, mask in run.masks.items())
    assert changed > 0


def test_drop_and_grow_by_hand():
    mask = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()
    weight = torch.tensor([4.0, -1.0, 1.0, 3.0, 0, 0, 0, 0])
    left = dropped(mask, weight.abs(), 0.5)
    assert left.tolist() == [True, False, False, True, False, False, False, False]
    assert dropped(mask, weight.abs(), 0.25).tolist() == [True, True, False, True, False, False, False, False]
    growth = torch.tensor([9.0, 8.0, 0.0, 9.0, 1.0, 5.0, 5.0, 2.0])
    assert grown(left, growth, 4).nonzero().flatten().tolist() == [0, 1, 3, 5]
    assert grown(left, growth, 4, barred=mask & ~left).nonzero().flatten().tolist() == [0, 3, 5, 6]
    assert torch.equal(grown(left, growth, 2), left)


def highest(numbers: Tensor) -> float:
    return max(numbers.tolist(), default=-math.inf)


def lowest(numbers: Tensor) -> float:
    return min(numbers.tolist(), default=math.inf)


@pytest.mark.parametrize("regrow", [True, False])
def test_what_is_dropped_is_grown_elsewhere(regrow: bool):
    generator = torch.Generator().manual_seed(0)
    for index in range(60):
        shape = [(4, 3, 3, 3), (7, 5), (2, 2)][index % 3]
        density, fraction = [0.1, 0.4, 0.9][index // 3 % 3], [0.0, 0.3, 1.0][index // 9 % 3]
        weight = torch.randn(shape, generator=generator)
        method = demp.methods.find("rigl")(
            demp.methods.config_class("rigl")(regrow_dropped=regrow, distribution="uniform"), 100
        )
        assert isinstance(method, Rewiring)
        mask = random_masks({"w": weight}, {"w": density}, index)["w"]
        growth = torch.randn(shape, generator=generator).abs()
        new = method.rewired(mask, weight * mask, growth, density, fraction)
        count = int(mask.sum())
        assert int(new.sum()) == count == kept(weight.numel(), density)
        lost, won = mask & ~new, new & ~mask
        assert int(lost.sum()) == int(won.sum()) <= count - round(count * (1 - fraction))
        if not regrow:
            assert int(lost.sum()) == min(count - max(1, round(count * (1 - fraction))), weight.numel() - count)
            assert highest(weight[lost].abs()) <= lowest(weight[mask & new].abs())
            assert highest(growth[~mask & ~new]) <= lowest(growth[won])


def test_the_floor_of_a_tensor_holds_and_is_reported():
    model, optimizer, pruner = parts("magnitude", weight_sparsity=0.95, weight_floor=5, mask_exclude=("conv*",))
    train(model, optimizer, IMAGE, range(TOTAL))
    assert {key: int(mask.sum()) for key, mask in pruner.masks.kept.items()} == {"fc.weight": 7, "head.weight": 5}
    assert "weight_floor=5 keeps 4 weights that weight_sparsity asks to mask" in pruner.finish().notes


def test_a_global_ranking_leaves_every_tensor_its_floor():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pruner = pruner_for("magnitude", model, optimizer, distribution="global", weight_sparsity=0.95, weight_floor=3)
    with torch.no_grad():
        model.conv1.weight *= 1e-3
    train(model, optimizer, IMAGE, range(TOTAL))
    assert int(pruner.masks.kept["conv1.weight"].sum()) == 3
    total = sum(mask.numel() for mask in pruner.masks.kept.values())
    assert pruner.masks.masked() == total - round(total * (1 - 0.95))


@pytest.mark.parametrize("name", EVERY_MASK_METHOD)
def test_which_weights_may_be_thinned_out(name: str):
    options = {"distribution": "uniform", "mask_include": ("*conv*", "head*"), "mask_exclude": ("conv2*",)}
    model, optimizer, pruner = parts(name, **options)
    train(model, optimizer, IMAGE, range(TOTAL))
    assert list(pruner.masks.kept) == ["conv1.weight", "head.weight"]
    model, optimizer, pruner = parts(name, distribution="uniform", dense_first=True)
    train(model, optimizer, IMAGE, range(TOTAL))
    assert list(pruner.masks.kept) == ["conv2.weight", "fc.weight", "head.weight"]


@pytest.mark.parametrize(("stop", "name"), covering((4, 9, 10, 17, 27), EVERY_MASK_METHOD))
def test_an_interrupted_run_continues_to_the_bit(name: str, stop: int):
    model, optimizer, _ = parts(name, "adam")
    train(model, optimizer, IMAGE, range(TOTAL))
    half, half_optimizer, pruner = parts(name, "adam")
    train(half, half_optimizer, IMAGE, range(stop))
    saved = pruner.state_dict(), half.state_dict(), half_optimizer.state_dict()
    again, again_optimizer, pruner = parts(name, "adam", resume=True)
    pruner.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again_optimizer.load_state_dict(saved[2])
    train(again, again_optimizer, IMAGE, range(stop, TOTAL))
    assert same(model, again)


@pytest.mark.parametrize(("name", "optimizer"), covering(EVERY_MASK_METHOD, OPTIMIZERS))
def test_outside_of_its_window_and_with_dense_masks_a_method_changes_nothing(name: str, optimizer: str):
    plain = build(PlainNet)
    train(plain, OPTIMIZERS[optimizer](plain), IMAGE, range(9))
    # 1e-4 of the largest tensor is less than half a weight: every mask is dense.
    model, mine, pruner = parts(name, optimizer, **({} if name in GRADUAL else {"weight_sparsity": 1e-4}))
    train(model, mine, IMAGE, range(9))
    assert same(plain, model)
    assert pruner.masks.masked() == 0
    twin, theirs, pruner = parts(name, optimizer, weight_sparsity=1e-4)
    train(twin, theirs, IMAGE, range(TOTAL))
    train(plain := build(PlainNet), OPTIMIZERS[optimizer](plain), IMAGE, range(TOTAL))
    assert same(plain, twin)


@pytest.mark.parametrize("name", EVERY_MASK_METHOD)
def test_masks_do_not_see_the_memory_format(name: str):
    masks = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = build(ResidualNet).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            for module in (model.stem, model.conv1, model.conv2):
                module.weight.copy_((module.weight * 4).round() / 4)  # many ties
        assert model.conv1.weight.is_contiguous(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        pruner = pruner_for(name, model, optimizer, mask_from=0.0, attach=False)
        for step in range(6):
            optimizer.zero_grad()
            for parameter in model.parameters():
                generator = torch.Generator().manual_seed(step)
                parameter.grad = torch.randint(-2, 3, parameter.shape, generator=generator).to(parameter)
            pruner.before_step()
            pruner.after_step()
        masks.append(pruner.masks.state_dict())
        assert pruner.masks.masked() > 0
    assert all(torch.equal(masks[0][key], masks[1][key]) for key in masks[0])


@pytest.mark.parametrize("name", EVERY_MASK_METHOD)
def test_the_seed_of_the_run_decides_and_nothing_else(name: str):
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model, optimizer, pruner = parts(name, seed=seed)
        torch.rand(noise)
        train(model, optimizer, IMAGE, range(TOTAL))
        runs.append(pruner.masks.state_dict())
    equal = [all(torch.equal(runs[0][key], other[key]) for key in runs[0]) for other in runs[1:]]
    assert equal == [True, name in GRADUAL]


def test_random_numbers_differ_by_step_and_name():
    weight = torch.empty(50)
    one = uniform_scores(weight, 0, 3, "a")
    assert torch.equal(one, uniform_scores(weight, 0, 3, "a"))
    others = (uniform_scores(weight, *key) for key in ((1, 3, "a"), (0, 4, "a"), (0, 3, "b")))
    assert not any(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("name", EVERY_MASK_METHOD)
def test_accumulated_gradients_count_as_one_batch(name: str):
    """Two halves of a batch, each with half the loss, end in the masks of the whole batch."""
    masks = []
    for pieces in (1, 2):
        model = build(PlainNetWithoutNorm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = pruner_for(name, model, optimizer)
        for step in range(TOTAL):
            optimizer.zero_grad()
            x, y = batch_at(step, IMAGE)
            for part, target in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (nn.functional.cross_entropy(model(part), target) / pieces).backward()
            optimizer.step()
        masks.append(pruner.masks.state_dict())
    assert all(torch.equal(masks[0][key], masks[1][key]) for key in masks[0])


class PlainNetWithoutNorm(nn.Module):
    """A convolution and a linear layer: the mean over a batch is the mean of the means of its halves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("name", REWIRING)
def test_the_published_form_keeps_the_optimizer_still_on_updates(name: str):
    model, optimizer, _ = parts(name, skip_updates=True)
    still = []
    for step in range(TOTAL):
        before = model.head.bias.detach().clone()
        train(model, optimizer, IMAGE, range(step, step + 1))
        still.append(torch.equal(before, model.head.bias))
    assert [step for step, flag in enumerate(still) if flag] == [9, 12, 15, 18, 21, 24]


def test_cubic_schedule():
    assert 0.8 * cubic(0.5) == pytest.approx(0.7)
    assert [cubic(p) for p in (-1.0, 0.0, 1.0, 2.0)] == [0.0, 0.0, 1.0, 1.0]
    window = UpdateSteps(500, 29_297, 78_125)
    assert window.steps(97_656)[0] == 29_500
    assert window.steps(97_656)[-1] == 78_000
    assert progress(29_500, window, 97_656, "exact") == 0.0
    assert progress(78_000, window, 97_656, "exact") == 1.0
    # The literal form ends short of its target, and is ahead by one step.
    literal = progress(78_000, window, 97_656, "plus-one")
    assert literal == (78_000 + 1 - 29_297) / (78_125 - 29_297)
    assert 0.9 * cubic(literal) < 0.9
    assert progress(78_124, UpdateSteps(1, 29_297, 78_125), 97_656, "plus-one") == 1.0
    assert progress(7, UpdateSteps(5, 7, 7), 10, "plus-one") == 1.0


def test_the_window_never_asks_for_a_step_that_the_run_has_not():
    window = UpdateSteps(1, 0, 10)
    assert window.steps(10) == range(10)
    assert progress(9, window, 10, "exact") == 1.0
    assert [step for step in range(20) if step in UpdateSteps(4, 3, 12)] == [4, 8, 12]
    assert list(UpdateSteps(4, 3, 12).steps(100)) == [4, 8, 12]
    assert progress(8, UpdateSteps(8, 3, 12), 100, "exact") == 1.0


@pytest.mark.parametrize("name", GRADUAL)
def test_the_last_update_reaches_the_target(name: str):
    for total in (7, 20, 33):
        model = build(PlainNet)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = pruner_for(name, model, optimizer, total_steps=total, mask_every=None)
        train(model, optimizer, IMAGE, range(total))
        for mask in pruner.masks.kept.values():
            assert int(mask.sum()) == round(mask.numel() * (1 - 0.7))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magnitude", {"weight_sparsity": 1.0}, r"weight_sparsity is 1.0; give a share in \(0, 1\)"),
        ("rigl", {"weight_sparsity": 0.0}, r"weight_sparsity is 0.0; give a share in \(0, 1\)"),
        ("set", {"distribution": "global"}, "distribution is 'global'; choose one of uniform, erk"),
        ("saliency", {"distribution": "layer"}, "choose one of uniform, erk, global, global-normalised"),
        ("set", {"weight_floor": 0}, "weight_floor is 0; give at least 1"),
        ("rigl", {"mask_every": 0}, "mask_every is 0; give at least 1"),
        ("set", {"mask_from": 0.9}, "mask_from is 0.9 and mask_until 0.8; give shares of the run"),
        ("rigl", {"dense_first": True}, "dense_first goes with distribution='uniform'"),
        ("rigl", {"drop_fraction": 1.5}, r"drop_fraction is 1.5; give a share in \[0, 1\]"),
        ("rigl", {"drop_schedule": "linear"}, "drop_schedule is 'linear'; choose one of constant, cosine"),
        ("magnitude", {"cubic": "literal"}, "cubic is 'literal'; choose one of exact, plus-one"),
        ("magnitude", {"mask_every": 100}, "no update of the masks falls into steps 9 to 24 of 30; lower mask_every"),
        ("rigl", {"mask_exclude": "stem*"}, r"mask_exclude is the string 'stem\*'; give a tuple of globs"),
        ("set", {"mask_include": ("nothing*",)}, "leave no weight to mask; there are: conv1.weight, conv2.weight"),
    ],
)
def test_bad_settings_are_refused(name: str, options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        parts(name, **options)


def test_every_gradual_method_scores():
    for name in GRADUAL:
        method = demp.methods.find(name)
        assert issubclass(method, Gradual)
        assert method.score is not Gradual.score
