"""A small ReLU network moved by noise of four kinds, and how many of its neurons that kills (App. D.1, Fig. 9).

The gradients are written out, so that a step with one image costs a fifth of a millisecond and all fits one core.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.files.checks import check, check_above, check_choices
from demp.train import Observer, TrainingInterrupted
from demp.train.parts import DataConfig
from demp.train.run import resolve_device
from demp.train.seeds import generator
from demp.train.sources import load
from demp.train.stopping import ASKED

WORK = "demp.studies.small_mlp:walked"
Regime = Literal["sgd", "sgd-noise", "gaussian-asymmetric", "gaussian-symmetric"]
"""What moves the network; see `Walk`."""

Layers = list[tuple[Tensor, Tensor]]
"""Weight (out, in) and bias of each layer."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One network and its walk."""

    regime: Regime
    """``sgd``: w' = w - rate g^. ``sgd-noise``: w' = w - rate (g^ - g), the noisy part alone. ``gaussian-symmetric``:
    w' = w + rate sqrt(rate / batch) z with normal z, as in the authors' code. ``gaussian-asymmetric``: the same where
    g^ is not zero. g^ is the gradient of a batch, g that of ``full`` images."""
    rate: float
    """eta."""
    seed: int = 0
    """Of the weights and of all that is drawn."""
    data: str = "mnist"
    """The images."""
    pictures: int = 10_000
    """How many of the training split there are; the same ones for every seed."""
    hidden: tuple[int, ...] = (100, 300)
    """Widths of the hidden layers; those of the paper."""
    batch: int = 1
    """Images behind g^, drawn with replacement."""
    full: int = 0
    """Images behind g, drawn anew each step with replacement; 0 takes all there are, as in the paper. With a draw the
    mean of a step is still exactly zero, and its covariance larger by batch / full."""
    steps: int = 30_000
    """Updates."""
    count_every: int = 500
    """Steps between two counts of the dead, on all images."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("rate", "pictures", "batch", "steps", "count_every"):
            check_above(name, getattr(self, name))
        check(self.full >= 0, "full", self.full, "give a number of images, or 0 for all")

    def arguments(self) -> dict[str, Any]:
        """The arguments of a job of `walked`, ready for JSON."""
        return asdict(self) | {"hidden": list(self.hidden)}


def walked(arguments: Mapping[str, Any], folder: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """The work of a job: the dead over the steps, and the accuracy on the images.

    ``diverged_at`` is the count at which weights were no longer finite, where the walk ends; else None.

    Raises:
        TrainingInterrupted: an observer asked to stop.
    """
    torch.set_flush_denormal(True)
    walk = Walk(**{**arguments, "hidden": tuple(arguments["hidden"])})
    series: dict[str, list[list[float]]] = {}
    diverged = None
    for step, layers, x, y in walking(walk):
        if any(observer.asks_to_stop() for observer in observers):
            raise TrainingInterrupted("asked to stop", 128 + ASKED)
        if not all(bool(tensor.isfinite().all()) for layer in layers for tensor in layer):
            diverged = step
            break
        dead, accuracy = counted(layers, x, y)
        found = {"dead": sum(dead), "accuracy": accuracy} | {f"dead/{at}": n for at, n in enumerate(dead, 1)}
        for name, value in found.items():
            series.setdefault(name, []).append([step, value])
    last = {name: points[-1][1] for name, points in series.items()}
    return {**last, "neurons": sum(walk.hidden), "diverged_at": diverged, "series": series}


def walking(walk: Walk) -> Iterator[tuple[int, Layers, Tensor, Tensor]]:
    """Step, weights, images and labels at every count, the first before the first step."""
    device = torch.device(resolve_device("auto"))
    x, y = images(walk.data, walk.pictures)
    x, y = x.to(device), y.to(device)
    layers = [(w.to(device), b.to(device)) for w, b in initial(x.shape[1], walk.hidden, int(y.max()) + 1, walk.seed)]
    move = MOVES[walk.regime]
    rows = generator("cpu", walk.seed, "rows")
    draw = generator(device, walk.seed, "noise")
    yield 0, layers, x, y
    for step in range(1, walk.steps + 1):
        if walk.regime == "gaussian-symmetric":  # nothing is read between two counts: one draw for all their steps
            if step % walk.count_every and step != walk.steps:
                continue
            move(walk, layers, (x, y), rows, draw, (step - 1) % walk.count_every + 1)
        else:
            move(walk, layers, (x, y), rows, draw, 1)
        if step % walk.count_every == 0 or step == walk.steps:
            yield step, layers, x, y


@lru_cache(maxsize=2)
def images(data: str, count: int) -> tuple[Tensor, Tensor]:
    """``count`` training images as rows of values between 0 and 1, with their labels; chosen by no seed.

    Raises:
        UsageError: the set has fewer.
    """
    train = load(DataConfig(name=data)).train
    assert train is not None and isinstance(train.images, Tensor)
    if count > len(train):
        raise UsageError(f"{data} has {len(train)} training images, not {count}; ask for fewer")
    chosen = torch.randperm(len(train), generator=generator("cpu", 0, "pictures"))[:count]
    return train.images[chosen].flatten(1).float() / 255, train.labels[chosen]


def initial(inputs: int, hidden: Sequence[int], classes: int, seed: int) -> Layers:
    """Weights normal with deviation 1/sqrt(fan-in), cut off at two, biases zero: Haiku's, as in the authors' code."""
    draw, layers = generator("cpu", seed, "weights"), []
    for fan_in, out in zip((inputs, *hidden), (*hidden, classes), strict=True):
        std = fan_in**-0.5
        weight = nn.init.trunc_normal_(torch.empty(out, fan_in), std=std, a=-2 * std, b=2 * std, generator=draw)
        layers.append((weight, torch.zeros(out)))
    return layers


def gradients(layers: Layers, x: Tensor, y: Tensor) -> Layers:
    """Of the mean cross entropy of a batch."""
    seen, last = [x], len(layers) - 1
    for at, (weight, bias) in enumerate(layers):
        out = torch.addmm(bias, seen[-1], weight.T)
        seen.append(out if at == last else out.relu_())
    delta = seen[-1].softmax(1)
    delta[torch.arange(len(y), device=y.device), y] -= 1
    delta /= len(y)
    found: Layers = []
    for at in range(last, -1, -1):
        found.insert(0, (delta.T @ seen[at], delta.sum(0)))
        if at:
            delta = (delta @ layers[at][0]).mul_(seen[at] > 0)
    return found


def counted(layers: Layers, x: Tensor, y: Tensor) -> tuple[list[int], float]:
    """Neurons of each hidden layer that are zero on every image, and the accuracy."""
    dead = []
    for weight, bias in layers[:-1]:
        x = torch.addmm(bias, x, weight.T).relu_()
        dead.append(int((x.amax(0) == 0).sum()))
    weight, bias = layers[-1]
    return dead, (torch.addmm(bias, x, weight.T).argmax(1) == y).double().mean().item()


Move = Callable[[Walk, Layers, tuple[Tensor, Tensor], torch.Generator, torch.Generator, int], None]
"""Changes the weights: walk, weights, data, who draws images, who draws noise, how many steps at once."""


def _drawn(count: int, data: tuple[Tensor, Tensor], rows: torch.Generator) -> tuple[Tensor, Tensor]:
    at = torch.randint(len(data[1]), (count,), generator=rows).to(data[1].device)
    return data[0][at], data[1][at]


def _sgd(walk: Walk, layers: Layers, data: Any, rows: Any, draw: Any, steps: int) -> None:
    for layer, gradient in zip(layers, gradients(layers, *_drawn(walk.batch, data, rows)), strict=True):
        for tensor, g in zip(layer, gradient, strict=True):
            tensor.sub_(g, alpha=walk.rate)


def _sgd_noise(walk: Walk, layers: Layers, data: Any, rows: Any, draw: Any, steps: int) -> None:
    noisy = gradients(layers, *_drawn(walk.batch, data, rows))
    behind = _drawn(walk.full, data, rows) if walk.full else data
    for layer, own, mean in zip(layers, noisy, gradients(layers, *behind), strict=True):
        for tensor, g, of_all in zip(layer, own, mean, strict=True):
            tensor.sub_(g.sub_(of_all), alpha=walk.rate)


def _asymmetric(walk: Walk, layers: Layers, data: Any, rows: Any, draw: Any, steps: int) -> None:
    std = walk.rate * (walk.rate / walk.batch) ** 0.5
    for layer, gradient in zip(layers, gradients(layers, *_drawn(walk.batch, data, rows)), strict=True):
        for tensor, g in zip(layer, gradient, strict=True):
            live = g.nonzero(as_tuple=True)
            tensor[live] += std * torch.randn(len(live[0]), generator=draw, device=g.device)


def _symmetric(walk: Walk, layers: Layers, data: Any, rows: Any, draw: Any, steps: int) -> None:
    std = walk.rate * (steps * walk.rate / walk.batch) ** 0.5
    for tensor in (tensor for layer in layers for tensor in layer):
        tensor.add_(torch.randn(tensor.shape, generator=draw, device=tensor.device), alpha=std)


MOVES: dict[str, Move] = {
    "sgd": _sgd,
    "sgd-noise": _sgd_noise,
    "gaussian-asymmetric": _asymmetric,
    "gaussian-symmetric": _symmetric,
}
