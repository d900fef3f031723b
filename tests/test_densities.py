"""Densities and top masks against literal twins and brute force."""

import math

import pytest
import torch
from torch import Tensor

from demp.masking.distributions import erk, kept, top, top_of_all, uniform

Shapes = dict[str, tuple[int, ...]]


def erk_in_rounds(shapes: Shapes, sparsity: float, one_per_round: bool) -> dict[str, float]:
    """The published loop: solve for eps, make what has the largest raw share dense, start again."""
    dense: list[str] = []
    while True:
        divisor = rhs = 0.0
        raw = {}
        for name, shape in shapes.items():
            n = math.prod(shape)
            zeros = math.floor(sparsity * n)
            if name in dense:
                rhs -= zeros
            else:
                rhs += n - zeros
                raw[name] = sum(shape) / n
                divisor += raw[name] * n
        eps = rhs / divisor
        largest = max(raw.values())
        if largest * eps <= 1:
            return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}
        full = [name for name, share in raw.items() if share == largest]
        dense += full[:1] if one_per_round else full


def random_shapes(seed: int) -> Shapes:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> int:
        return sizes[int(torch.randint(len(sizes), (1,), generator=generator))]

    shapes: Shapes = {"stem": (draw(8, 16, 64), 3, 3, 3)}
    for index in range(draw(2, 5, 9)):
        kernel = draw(1, 3, 5)
        axes = (kernel, kernel) if draw(0, 1, 1) else ()
        shapes[f"layer{index}"] = (draw(4, 16, 64, 128), draw(4, 16, 64, 128), *axes)
    return shapes | {"head": (10, draw(16, 64, 512))}


@pytest.mark.parametrize("one_per_round", [True, False])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8, 0.9, 0.95, 0.99])
def test_erk_is_the_published_loop(sparsity: float, one_per_round: bool):
    for seed in range(30):
        shapes = random_shapes(seed)
        assert erk(shapes, sparsity) == pytest.approx(erk_in_rounds(shapes, sparsity, one_per_round), rel=1e-12)


def test_erk_keeps_the_share_of_all_weights_and_nothing_is_above_one():
    for seed in range(30):
        shapes = random_shapes(seed)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        found = erk(shapes, 0.9)
        assert all(0 < density <= 1 for density in found.values())
        ones = sum(density * sizes[name] for name, density in found.items())
        assert ones == pytest.approx(sum(n - math.floor(0.9 * n) for n in sizes.values()), rel=1e-12)


def test_erk_by_hand():
    shapes = {"a": (2, 2), "b": (10, 10), "c": (20, 10)}
    assert erk({"b": (10, 10), "c": (20, 10)}, 0.5) == pytest.approx({"b": 0.6, "c": 0.45})  # eps = 150 / 50
    # All three: eps = 152 / 54, and a would have 2.81 > 1; without it eps = (150 - 2) / 50.
    assert erk(shapes, 0.5) == pytest.approx({"a": 1.0, "b": 2.96 * 20 / 100, "c": 2.96 * 30 / 200})
    assert erk({"a": (2, 2)}, 0.5) == {"a": 0.5}


def test_all_axes_of_a_kernel_count():
    found = erk({"three": (16, 16, 3, 3), "one": (16, 16, 1, 1)}, 0.8)
    assert found["three"] / found["one"] == pytest.approx((38 / (256 * 9)) / (34 / 256))


def test_uniform():
    assert uniform({"a": (3, 4), "b": (5,)}, 0.75) == {"a": 0.25, "b": 0.25}


@pytest.mark.parametrize(
    ("entries", "density", "floor", "expected"),
    [(10, 0.25, 1, 2), (10, 0.35, 1, 4), (6, 0.75, 1, 4), (100, 0.001, 1, 1), (100, 0.001, 7, 7), (5, 1.0, 1, 5),
     (5, 0.1, 9, 5)],
)  # fmt: skip
def test_kept_rounds_half_to_even_within_floor_and_size(entries: int, density: float, floor: int, expected: int):
    assert kept(entries, density, floor) == expected


def by_sorting(scores: Tensor, count: int) -> Tensor:
    """One Python sort by (-score, flat index)."""
    flat = scores.flatten().tolist()
    chosen = set(sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count])
    return torch.tensor([i in chosen for i in range(len(flat))]).view(scores.shape)


def some_scores(shape: tuple[int, ...], seed: int) -> Tensor:
    """Few values, so that many are equal."""
    return torch.randint(5, shape, generator=torch.Generator().manual_seed(seed)).double() - 1


def test_top_is_a_stable_sort():
    for seed in range(20):
        scores = some_scores((3, 4, 2, 2), seed)
        for count in (0, 1, 7, 24, 47, 48, 60):
            assert torch.equal(top(scores, count), by_sorting(scores, count))


def test_top_does_not_see_the_memory_format():
    scores = some_scores((4, 3, 3, 3), 0)
    turned = scores.to(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    for count in range(0, 108, 9):
        assert torch.equal(top(scores, count), top(turned, count))


def test_one_ranking_for_all_tensors():
    for seed in range(20):
        scores = {"a": some_scores((3, 4), seed), "b": some_scores((2, 2, 2), seed + 100), "c": some_scores((9,), seed)}
        together = torch.cat([score.flatten() for score in scores.values()])
        for density in (0.9, 0.5, 0.2):
            found = top_of_all(scores, density, floor=0)
            expected = by_sorting(together, round(29 * density)).split([12, 8, 9])
            for (name, mask), flags in zip(found.items(), expected, strict=True):
                assert torch.equal(mask, flags.view(scores[name].shape))


def test_one_ranking_leaves_every_tensor_its_floor():
    scores = {"high": torch.arange(20.0) + 100, "low": torch.arange(10.0)}
    found = top_of_all(scores, 0.4, floor=2)
    assert found["low"].nonzero().flatten().tolist() == [8, 9]
    assert found["high"].nonzero().flatten().tolist() == list(range(10, 20))
    assert {name: int(mask.sum()) for name, mask in top_of_all(scores, 0.01, floor=3).items()} == {"high": 3, "low": 3}
