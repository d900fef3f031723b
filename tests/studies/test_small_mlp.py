"""The small network of Fig. 9: its gradients, its four walks, its counts."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from demp.errors import UsageError
from demp.experiments.studies import small_mlp
from demp.experiments.studies.small_mlp import Walk, counted, gradients, initial, walked, walking
from demp.train import Observer, TrainingInterrupted

SMALL = {"data": "digits", "pictures": 60, "hidden": (12, 8), "steps": 6, "count_every": 3}


def by_autograd(layers, x, y):
    """The same gradients, as torch finds them."""
    layers = [tuple(tensor.clone().requires_grad_() for tensor in layer) for layer in layers]
    for at, (weight, bias) in enumerate(layers):
        x = F.linear(x, weight, bias)
        x = F.relu(x) if at < len(layers) - 1 else x
    F.cross_entropy(x, y).backward()
    return [tuple(tensor.grad for tensor in layer) for layer in layers]


def close(left, right):
    pairs = zip(flat(left), flat(right), strict=True)
    return all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)


def flat(layers):
    return [tensor for layer in layers for tensor in layer]


def copies(layers):
    return [(weight.clone(), bias.clone()) for weight, bias in layers]


@pytest.fixture
def data():
    return small_mlp.images("digits", 60)


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_gradients_are_those_of_autograd(data, rows):
    layers = initial(64, (12, 8), 10, 0)
    x, y = (part[:rows] for part in data)
    assert close(gradients(layers, x, y), by_autograd(layers, x, y))


def test_images_are_values_between_0_and_1_and_the_same_for_all(data):
    x, y = data
    assert x.shape == (60, 64) and len(y) == 60
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    with pytest.raises(UsageError, match="digits has 1442 training images, not 5000"):
        small_mlp.images("digits", 5000)


def test_weights_begin_as_a_cut_off_normal():
    (first, bias), *_ = initial(784, (100, 300), 10, 0)
    assert first.shape == (100, 784) and not bias.any()
    assert first.abs().max().item() <= 2 / 28
    assert first.std().item() == pytest.approx(0.8796 / 28, rel=0.01)  # of a normal cut off at two deviations
    assert not torch.equal(first, initial(784, (100, 300), 10, 1)[0][0])


def test_sgd_is_the_literal_loop(data):
    x, y = data
    walk = Walk(regime="sgd", rate=0.3, seed=5, batch=2, **SMALL)
    layers = initial(64, (12, 8), 10, 5)
    rows = small_mlp.generator("cpu", 5, "rows")
    seen = [copies(layers)]
    for step in range(1, 7):
        at = torch.randint(60, (2,), generator=rows)
        found = by_autograd(layers, x[at], y[at])
        layers = [(w - 0.3 * gw, b - 0.3 * gb) for (w, b), (gw, gb) in zip(layers, found, strict=True)]
        if step % 3 == 0:
            seen.append(copies(layers))
    states = [(step, copies(at)) for step, at, *_ in walking(walk)]
    assert [step for step, _ in states] == [0, 3, 6]
    assert all(close(mine, theirs) for (_, mine), theirs in zip(states, seen, strict=True))


def moved(walk, data, layers, rows_seed=0, draw_seed=0):
    """Where one step from ``layers`` leads."""
    there = copies(layers)
    rows, draw = (torch.Generator().manual_seed(seed) for seed in (rows_seed, draw_seed))
    small_mlp.MOVES[walk.regime](walk, there, data, rows, draw, 1)
    return there


def test_the_noise_of_minibatches_is_the_batch_less_the_mean_gradient(data):
    x, y = data
    layers = initial(64, (12, 8), 10, 0)
    walk = Walk(regime="sgd-noise", rate=0.1, **SMALL)
    at = torch.randint(60, (1,), generator=torch.Generator().manual_seed(3))
    noisy, mean = by_autograd(layers, x[at], y[at]), by_autograd(layers, x, y)
    wanted = [
        tuple(tensor - 0.1 * (a - b) for tensor, a, b in zip(layer, one, other, strict=True))
        for layer, one, other in zip(layers, noisy, mean, strict=True)
    ]
    assert close(moved(walk, data, layers, rows_seed=3), wanted)


def test_a_drawn_mean_gradient_leaves_no_drift(data):
    """Over many draws the step with ``full`` images averages to nothing, as the exact one does."""
    layers = initial(64, (12, 8), 10, 0)
    walk = Walk(regime="sgd-noise", rate=1.0, full=16, **SMALL)
    steps = torch.stack([moved(walk, data, layers, seed)[0][0] - layers[0][0] for seed in range(3000)])
    error = steps.std(0) / len(steps) ** 0.5
    alive = error > 0
    assert ((steps.mean(0)[alive] / error[alive]).abs() < 5).all()


def test_gaussian_noise_on_live_weights_leaves_the_others_alone(data):
    layers = initial(64, (12, 8), 10, 0)
    layers[0][1][4] = -50.0  # a dead neuron
    walk = Walk(regime="gaussian-asymmetric", rate=0.25, **SMALL)
    gradient = gradients(
        layers, *(part[torch.randint(60, (1,), generator=torch.Generator().manual_seed(0))] for part in data)
    )
    steps = []
    for seed in range(400):
        there = moved(walk, data, layers, draw_seed=seed)
        for layer, new, g in zip(layers, there, gradient, strict=True):
            for old, now, live in zip(layer, new, g, strict=True):
                assert torch.equal(old[live == 0], now[live == 0])
                steps.append((now - old)[live != 0])
    assert not (there[0][0][4] != layers[0][0][4]).any()
    assert torch.cat(steps).std().item() == pytest.approx(0.25**1.5, rel=0.01)


def test_gaussian_noise_on_all_weights_adds_up_between_counts():
    walk = Walk(regime="gaussian-symmetric", rate=0.25, **{**SMALL, "steps": 7, "hidden": (200, 300)})
    states = [(step, copies(layers)) for step, layers, *_ in walking(walk)]
    assert [step for step, _ in states] == [0, 3, 6, 7]
    for (before, old), (after, new) in pairwise(states):
        step = torch.cat([(b - a).flatten() for a, b in zip(flat(old), flat(new), strict=True)])
        assert step.std().item() == pytest.approx(0.25**1.5 * (after - before) ** 0.5, rel=0.02)


def test_counts_are_those_of_a_loop(data):
    x, y = data
    layers = initial(64, (12, 8), 10, 0)
    layers[0][1][[2, 3]] = -50.0
    layers[1][1][5] = -50.0
    first = torch.stack([F.relu(F.linear(row, *layers[0])) for row in x])
    second = torch.stack([F.relu(F.linear(row, *layers[1])) for row in first])
    dead = [sum(bool((column == 0).all()) for column in out.T) for out in (first, second)]
    right = sum(int(F.linear(row, *layers[2]).argmax()) == int(label) for row, label in zip(second, y, strict=True))
    assert counted(layers, x, y) == (dead, right / 60)
    assert dead[0] >= 2 and dead[1] >= 1


def test_the_result_is_a_series_and_its_end():
    found = walked(Walk(regime="sgd", rate=0.5, **SMALL).arguments(), None, [])
    assert [step for step, _ in found["series"]["dead"]] == [0, 3, 6]
    for name in ("dead", "dead/1", "dead/2", "accuracy"):
        assert found[name] == found["series"][name][-1][1]
    assert found["dead"] == found["dead/1"] + found["dead/2"]
    assert (found["neurons"], found["diverged_at"]) == (20, None)
    assert found == walked(Walk(regime="sgd", rate=0.5, **SMALL).arguments(), None, [])


def test_a_walk_whose_weights_overflow_ends_at_its_last_count():
    found = walked(Walk(regime="sgd-noise", rate=1e15, **{**SMALL, "steps": 300}).arguments(), None, [])
    last = found["series"]["dead"][-1][0]
    assert found["diverged_at"] == last + 3 < 300


def test_it_stops_when_it_is_asked_to():
    class Stop(Observer):
        def asks_to_stop(self):
            return True

    with pytest.raises(TrainingInterrupted):
        walked(Walk(regime="sgd", rate=0.5, **SMALL).arguments(), None, [Stop()])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"regime": "noise"}, "regime is 'noise'; choose one of sgd, sgd-noise"),
        ({"rate": 0.0}, "rate is 0.0; give a number above 0"),
        ({"steps": 0}, "steps is 0"),
        ({"full": -1}, "full is -1"),
    ],
)
def test_walks_that_cannot_be_are_refused(values, says):
    with pytest.raises(UsageError, match=says):
        Walk(**{"regime": "sgd", "rate": 0.1, **values})
