"""Algorithm 1 of the paper, literally and slowly, on a dense network whose removed neurons are held at zero.

Written from the formulas, knows nothing of the library. Which slices belong to a neuron is written down by hand for
each network (``Anatomy``). A removed neuron's slices are set to zero, with their optimizer state, and stay there: with
scale and shift zero and nobody reading it, the neuron takes part in nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kin:
    """Neurons that live and die by index: one activation layer, or all layers of a residual stream."""

    layers: tuple[str, ...]
    """Activation modules; a neuron goes when it is dead in all of them."""
    width: int
    slices: tuple[tuple[str, int], ...]
    """(parameter, axis): slice j along the axis belongs to neuron j."""
    blocks: tuple[tuple[str, int, int], ...] = ()
    """(parameter, axis, block): ``block`` neighbouring slices belong to each neuron (flattened maps)."""


@dataclass(frozen=True)
class Made:
    """A parameter that makes neurons; ``liveness`` is the shift vector whose data gradient tells who lives."""

    parameter: str
    liveness: str


@dataclass(frozen=True)
class Anatomy:
    """A network by hand."""

    kin: tuple[Kin, ...]
    gammas: tuple[str, ...]
    """What the penalty acts on."""
    made: tuple[Made, ...]
    """In the order in which noise is drawn."""
    others: tuple[str, ...]
    """Parameters that make no neurons; noise is drawn for them last."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Inputs of Algorithm 1."""

    total_steps: int
    tau: int
    peak_lambda: float
    peak_sigma: float
    optimizer: str
    lr: float
    penalty: str = "lasso"
    noise: str = "live"
    linear_rise: bool = False
    seed: int = 0
    span: float = 0.87


def one_cycle(t: int, total_steps: int, span: float, linear_rise: bool) -> float:
    """Peak 1: from 1/25 up to 1 at 30 % of the span, down to 1/250,000 at its end, constant afterwards."""
    s = min(t / (span * total_steps), 1.0)
    if s < 0.3:
        rise = s / 0.3 if linear_rise else (1 - math.cos(math.pi * s / 0.3)) / 2
        return 1 / 25 + (1 - 1 / 25) * rise
    fall = (1 + math.cos(math.pi * (s - 0.3) / 0.7)) / 2
    return 1 / 250_000 + (1 - 1 / 250_000) * fall


@dataclass
class Algorithm1:
    """Runs the algorithm; one call of ``step`` per t."""

    model: nn.Module
    anatomy: Anatomy
    settings: Settings
    death_batches: Callable[[int], Sequence[Tensor]]
    t: int = 0
    cuts: list[tuple[int, list[list[int]]]] = field(default_factory=list)
    """(t, removed indices per kin)."""

    def __post_init__(self) -> None:
        self.w = dict(self.model.named_parameters())
        self.kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.w.items()}
        self.alive = [torch.ones(kin.width, dtype=torch.bool) for kin in self.anatomy.kin]
        self.first = {name: torch.zeros_like(p) for name, p in self.w.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.w.items()}

    def step(self, loss_of: Callable[[nn.Module], Tensor]) -> float:
        """One pass of the loop body; the loss before the update."""
        loss = loss_of(self.model)
        names = list(self.w)
        gradients = dict(zip(names, torch.autograd.grad(loss, [self.w[name] for name in names]), strict=True))
        live = {made.parameter: self.live_entries(made, gradients) for made in self.anatomy.made}
        with torch.no_grad():
            self.add_penalty(gradients)
            self.update(gradients)
            self.add_noise(live)
        self.t += 1
        if self.t % self.settings.tau == 0:
            self.prune()
        return loss.item()

    def live_entries(self, made: Made, gradients: dict[str, Tensor]) -> Tensor:
        """Per entry of the parameter: does its neuron have a data gradient?"""
        liveness = gradients[made.liveness]
        if self.settings.noise == "all":
            rows = torch.ones(len(liveness), dtype=torch.bool)
        else:
            rows = torch.tensor([bool((row != 0).any()) for row in liveness])
        shape = self.w[made.parameter].shape
        return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)

    def cycle(self) -> float:
        """The schedule at t."""
        s = self.settings
        return one_cycle(self.t, s.total_steps, s.span, s.linear_rise)

    def add_penalty(self, gradients: dict[str, Tensor]) -> None:
        """Gradient of R(gamma; lambda_t)."""
        strength = self.settings.peak_lambda * self.cycle()
        for name in self.anatomy.gammas:
            gamma = self.w[name]
            gradients[name] = gradients[name] + strength * (gamma.sign() if self.settings.penalty == "lasso" else gamma)

    def update(self, gradients: dict[str, Tensor]) -> None:
        """SGD with momentum 0.9, or Adam with its published constants."""
        lr = self.settings.lr
        for name, gradient in gradients.items():
            if self.settings.optimizer == "sgd":
                self.first[name] = 0.9 * self.first[name] + gradient
                change = self.first[name]
            else:
                self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
                self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
                mean = self.first[name] / (1 - 0.9 ** (self.t + 1))
                square = self.second[name] / (1 - 0.999 ** (self.t + 1))
                change = mean / (square.sqrt() + 1e-8)
            self.w[name] -= lr * change * self.kept[name]

    def add_noise(self, live: dict[str, Tensor]) -> None:
        """xi ~ N(0, sigma_t^2): one stream of deviates per step, for the entries that are still there, in order."""
        sigma = self.settings.peak_sigma * self.cycle()
        stream = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.t)
        for name in [made.parameter for made in self.anatomy.made] + list(self.anatomy.others):
            kept = self.kept[name]
            xi = torch.zeros_like(self.w[name])
            xi[kept] = torch.randn(int(kept.sum()), generator=stream, dtype=xi.dtype)
            self.w[name] += sigma * xi * live.get(name, kept)

    def prune(self) -> None:
        """Remove dead neurons; the last one of a layer stays."""
        silent = self.silent_layers()
        removed = []
        for number, kin in enumerate(self.anatomy.kin):
            dead = torch.stack([silent[layer] for layer in kin.layers]).all(0) & self.alive[number]
            if bool(dead.any()) and not bool((self.alive[number] & ~dead).any()):
                dead[dead.nonzero()[0]] = False
            self.alive[number] &= ~dead
            removed.append(dead.nonzero().flatten().tolist())
            for name, axis, block in [*((n, a, 1) for n, a in kin.slices), *kin.blocks]:
                lost = dead.repeat_interleave(block).nonzero().flatten()
                for tensor in (self.w[name].data, self.kept[name], self.first[name], self.second[name]):
                    tensor.index_fill_(axis, lost, 0)
        self.cuts.append((self.t, removed))

    def silent_layers(self) -> dict[str, Tensor]:
        """Activation module -> neurons whose output is zero at every position of every example of every batch."""
        silent: dict[str, Tensor] = {}

        def look(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
            def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
                zero = (out == 0).transpose(0, 1).flatten(1).all(1)
                silent[name] = silent.get(name, zero) & zero

            return hook

        layers = [layer for kin in self.anatomy.kin for layer in kin.layers]
        handles = [self.model.get_submodule(name).register_forward_hook(look(name)) for name in layers]
        self.model.eval()
        with torch.no_grad():
            for x in self.death_batches(self.settings.seed + self.t):
                self.model(x)
        self.model.train()
        for handle in handles:
            handle.remove()
        return silent
