"""What the mask methods share: their config, when masks change, and which weights are dropped, grown and drawn.

Masks are decided on the network as it is: where neurons were removed, every tensor keeps the density that it was given
on the dense network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from torch import Tensor

from demp.activity import Criterion
from demp.errors import UsageError
from demp.files.checks import check_at_least, check_share
from demp.masking import distributions as densities
from demp.masking.distributions import kept, top
from demp.masking.masks import emptied
from demp.methods.base import MethodConfig, Requirements, Selection, View
from demp.methods.masks import MaskMethod

MASK_SHARE = 0.005
"""The authors' 500 steps of 97,656 between updates."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig(MethodConfig):
    """Knobs of every method that masks single weights."""

    weight_sparsity: float = 0.8
    """S: share of the weights that masks may thin out which is zero in the end. Norms, biases and embeddings, and what
    ``mask_exclude`` names, are not counted."""
    distribution: Literal["uniform", "erk"] = "uniform"
    """``uniform``: S in every tensor; ``erk``: Erdos-Renyi-Kernel, density by sum over product of the axes."""
    mask_include: tuple[str, ...] = ("*",)
    """Globs of parameter names that masks may thin out."""
    mask_exclude: tuple[str, ...] = ()
    """Globs of parameter names that stay dense."""
    dense_first: bool = False
    """The first weight of the network stays dense, as in RigL's uniform setting."""
    weight_floor: int = 1
    """Weights that stay in every tensor."""
    mask_every: int | None = None
    """f, Delta T: steps between updates of the masks; None: 0.5 % of the run, at least 1 (the authors' 500)."""
    mask_from: float = 0.3
    """t0: share of the run before the first update."""
    mask_until: float = 0.8
    """t1, T_end: share of the run after which the masks stay as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("weight_sparsity", self.weight_sparsity)
        check_at_least("weight_floor", self.weight_floor, 1)
        for name in ("mask_include", "mask_exclude"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is the string {getattr(self, name)!r}; give a tuple of globs")
        if self.mask_every is not None:
            check_at_least("mask_every", self.mask_every, 1)
        if not 0 <= self.mask_from <= self.mask_until <= 1:
            raise UsageError(
                f"mask_from is {self.mask_from} and mask_until {self.mask_until}; give shares of the run in [0, 1], "
                "the first not above the second"
            )
        if self.dense_first and self.distribution != "uniform":
            raise UsageError("dense_first goes with distribution='uniform'; else name the first weight in mask_exclude")


@dataclass(frozen=True)
class UpdateSteps:
    """The steps on which masks change: multiples of ``every`` in [first, last]; 0-based, both ends included."""

    every: int
    first: int
    last: int

    @classmethod
    def of(cls, config: MaskConfig, total_steps: int, usual: float = MASK_SHARE) -> "UpdateSteps":
        """The window of a run; ``usual`` is the share of it between updates where the config has no number of steps."""
        every = config.mask_every or max(1, round(usual * total_steps))
        return cls(every, round(config.mask_from * total_steps), round(config.mask_until * total_steps))

    def __contains__(self, step: int) -> bool:
        return step % self.every == 0 and self.first <= step <= self.last

    def steps(self, total_steps: int) -> range:
        """All of them, in a run of this length."""
        return range(-(-self.first // self.every) * self.every, min(self.last, total_steps - 1) + 1, self.every)


class SparseMethod(MaskMethod):
    """What all mask methods here do alike: when masks change, how dense tensors are to be, and what goes in the end."""

    update_share: ClassVar[float] = MASK_SHARE
    """Share of the run between updates of the masks, where ``mask_every`` is None."""

    def __init__(self, config: MaskConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.window = UpdateSteps.of(config, total_steps, self.update_share)

    def criterion(self) -> Criterion:
        """Return the criterion ``exact``: neurons whose inputs are masked go only if their outputs are zero."""
        return Criterion(kind="exact")

    def requirements(self) -> Requirements:
        """Return that batches are looked at where there are some."""
        return Requirements(collect="batches")

    def masks_due(self, step: int) -> bool:
        """Return whether masks change: t % f = 0 inside the window."""
        return step in self.window

    def densities(self, view: View) -> dict[str, float]:
        """Parameter name -> density, a function of the shapes of the dense network."""
        shapes = {name: view.graph.shapes[name] for name in thinned(self.config, view)}
        return getattr(densities, self.config.distribution)(shapes, self.config.weight_sparsity)

    def withheld(self, view: View) -> int:
        """Weights that stay because of the floor alone."""
        floor, shares = self.config.weight_floor, self.densities(view)
        sizes = {name: weight.numel() for name, weight in thinned(self.config, view).items()}
        return sum(kept(n, shares[name], floor) - kept(n, shares[name], 0) for name, n in sizes.items())

    def select(self, step: int, view: View) -> Selection:
        """At the last check: neurons that masks emptied."""
        if not view.final:
            return Selection()
        floor, withheld = self.config.weight_floor, self.withheld(view)
        note = f"weight_floor={floor} keeps {withheld} weights that weight_sparsity asks to mask"
        return Selection(emptied_neurons(view), exact=True, notes=(note,) if withheld else ())


def thinned(config: MaskConfig, view: View) -> dict[str, Tensor]:
    """Weights that the config lets masks thin out, in forward order.

    Raises:
        UsageError: there is none.
    """
    found = dict(view.maskable())
    names = list(found)[1:] if config.dense_first else list(found)
    chosen = {n: found[n] for n in names if matches(n, config.mask_include) and not matches(n, config.mask_exclude)}
    if not chosen:
        raise UsageError(
            f"mask_include={config.mask_include} and mask_exclude={config.mask_exclude} leave no weight to mask; "
            f"there are: {', '.join(found) or 'no trainable weights of convolutions or matrix products'}"
        )
    return chosen


def matches(name: str, globs: tuple[str, ...]) -> bool:
    """Return whether any of the globs matches the name."""
    return any(fnmatchcase(name, glob) for glob in globs)


def uniform_scores(weight: Tensor, seed: int, step: int, name: str) -> Tensor:
    """Uniform random numbers in the shape of a weight, on its device: a function of (seed, step, name) alone."""
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(weight.shape, generator=generator, dtype=torch.float32, device="cpu").to(weight.device)


def random_masks(
    weights: Mapping[str, Tensor], shares: Mapping[str, float], seed: int, floor: int = 1
) -> dict[str, Tensor]:
    """Masks with these densities at random: those that sparse training starts from."""
    return {
        name: top(uniform_scores(weight, seed, -1, name), kept(weight.numel(), shares[name], floor))
        for name, weight in weights.items()
    }


def dropped(mask: Tensor, scores: Tensor, fraction: float, most: int | None = None, floor: int = 1) -> Tensor:
    """What is left of a mask without the ``fraction`` of lowest scores: round(n * (1 - fraction)), at most ``most``."""
    count = int(mask.sum())
    left = min(count, max(floor, round(count * (1.0 - fraction))))
    left = left if most is None else min(left, most)
    return top(scores.masked_fill(~mask, -torch.inf), left) & mask


def grown(mask: Tensor, scores: Tensor, count: int, barred: Tensor | None = None) -> Tensor:
    """A mask with the highest scores added until ``count`` entries are there; what is ``barred`` is not added."""
    closed = mask if barred is None else mask | barred
    missing = min(count - int(mask.sum()), int((~closed).sum()))
    return mask | top(scores.masked_fill(closed, -torch.inf), missing)


def emptied_neurons(view: View) -> dict[str, Tensor]:
    """Layer name -> neurons that can go because of masks, without a change: nothing reads them, or they have no inputs.

    A neuron without inputs still has an output if its shift is not zero; whether it has is seen on batches. Without
    batches it stays.
    """
    graph, dead = view.graph, view.graph.none_removed()
    if view.can_detect:
        for name, flags in view.detect().dead.items():
            classes = graph.layer(name).classes
            dead[classes[flags]] = True
    removable = emptied(view.state, view.masks, dead)
    return {layer.name: flags for layer in graph.layers if bool((flags := removable[layer.classes]).any())}
