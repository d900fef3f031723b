"""Chase: channels are removed while weights are dropped and re-grown.

Sparse from the first step (ERK); N weights in the dense network, D = 1 - S of them at the end.
    every channel_every steps, up to channel_until: the channels with the smallest mean |w| go, in one ranking over all
        layers, until the share S_c (1 - (1 - t / t_last)^3) of the prunable ones is removed; no layer goes below
        C (1 - S_c) beta of its C channels, and what it withholds is taken from the others
    every mask_every steps: the smallest weights go until D N are left; then weights grow by |gradient| up to c_t N,
        c_t from D + extra_first to D + extra_last by half a cosine (the "soft memory bound")
    in the last part of the run, from exchange_from on: a share of the weights goes, by half a cosine over the whole run
        from drop_first to drop_last, and as many grow, so that D N are left

The published code sets the weights of a removed channel to zero and lets it run; here it is cut out of the network, its
norm, its readers and the optimizer's state, and steps cost less from then on. The ranking is the same: what a cut took
from a filter counts as zeros in its mean. Masks begin with exact counts instead of coin tosses. Two orders differ:
weights change before the optimizer moves rather than after, and a weight that is dropped and grown in one update keeps
its value rather than starting at zero. The last channels go at the last check before ``channel_until``, where S_c is
met; the published schedule stops just below.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.files.checks import check_at_least, check_portion
from demp.graph import GraphState, NeuronGraph, Slot
from demp.importance.ranking import RankingName, flags, take
from demp.masking import distributions as densities
from demp.masking.distributions import kept, top, top_of_all
from demp.methods.base import MethodConfig, Selection, View
from demp.methods.gradual import cubic
from demp.methods.sparse import MaskConfig, SparseMethod, random_masks, thinned
from demp.regularization.schedules import cosine

CHANNEL_SHARE = 0.02
"""2 of 100 epochs."""
SHARES = ("channel_floor", "channel_until", "exchange_from", "extra_first", "extra_last", "drop_first", "drop_last")


@dataclass(frozen=True, kw_only=True)
class ChaseConfig(MaskConfig):
    """Every knob of Chase; the defaults are those of ResNet-50 on ImageNet, as shares of the run."""

    distribution: Literal["uniform", "erk"] = "erk"
    """How the first masks, and layers with ``ranking="layer"``, share the weights: ``erk`` or ``uniform``."""
    mask_every: int | None = None
    """Delta T_p: steps between updates of the masks; None: 0.4 % of the run, at least 1 (1,000 of 250,000)."""
    mask_from: float = 0.0
    """Share of the run before the first update; at step 0 there is none."""
    mask_until: float = 1.0
    """Share of the run after which the masks stay as they are."""
    channel_sparsity: float = 0.4
    """S_c: share of the prunable channels that goes; 0 keeps them all."""
    channels: Literal["inner", "all"] = "inner"
    """Prunable: ``inner``, those that a single weight makes and no residual sum carries, as published (the inner
    convolutions of blocks, all of a plain network); or ``all`` that the graph lets go. ``include`` and ``exclude``
    narrow both."""
    channel_score: Literal["filter", "active"] = "filter"
    """Mean |w| over the whole ``filter``, zeros included ("mag-wise", as published), or over its ``active`` weights
    ("mask-wise")."""
    channel_floor: float = 0.2
    """beta: no layer goes below C (1 - S_c) beta channels; 0.2 to 0.5 on CIFAR."""
    channel_every: int | None = None
    """Delta T: steps between removals, half an update of the masks off; None: 2 % of the run, at least 1."""
    channel_until: float = 0.8
    """Share of the run at which S_c is reached."""
    ranking: RankingName = "global"
    """Weights are dropped and grown in one ranking (``global``, the published CIFAR settings), or in each ``layer`` to
    its share of the present weights (the published ImageNet settings)."""
    extra_first: float = 0.05
    """Density that growth adds to D at the start."""
    extra_last: float = 0.005
    """The same at the end."""
    exchange_from: float = 0.8
    """Share of the run from which on nothing is added: an update drops and grows the same number."""
    drop_first: float = 0.5
    """Share of the weights that such an update would drop at the start of the run."""
    drop_last: float = 0.005
    """The same at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.channel_sparsity < 1:
            raise UsageError(f"channel_sparsity is {self.channel_sparsity}; give a share in [0, 1)")
        for name in SHARES:
            check_portion(name, getattr(self, name))
        if self.channel_every is not None:
            check_at_least("channel_every", self.channel_every, 1)


class Chase(SparseMethod):
    """Sparse training that also removes channels: the smallest ones go while weights are dropped and re-grown."""

    name: ClassVar[str] = "chase"
    summary: ClassVar[str] = "sparse from the start; small channels are removed while weights are dropped and re-grown"
    reference: ClassVar[str] = "Dynamic Sparsity Is Channel-Level Sparsity Learner (Yin 2023)"
    Config: ClassVar[type[MethodConfig]] = ChaseConfig
    update_share: ClassVar[float] = 0.004
    """1,000 of the 250,000 steps on ImageNet."""
    config: ChaseConfig

    def __init__(self, config: ChaseConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.window = replace(self.window, first=max(self.window.first, 1))
        self.channel_steps = removals(config, total_steps, self.window.every)

    def is_due(self, step: int) -> bool:
        """Every Delta T, half a Delta T_p before an update of the masks."""
        return self.config.channel_sparsity > 0 and step in self.channel_steps

    def channel_share(self, step: int) -> float:
        """The share of prunable channels that is to be removed by now."""
        return self.config.channel_sparsity * cubic(step / self.channel_steps[-1])

    def ceiling(self, step: int) -> float:
        """Return the density of the weights after an update at ``step``."""
        config, base = self.config, 1.0 - self.config.weight_sparsity
        if step >= config.exchange_from * self.total_steps:
            return base
        return min(1.0, base + cosine(config.extra_first, config.extra_last, step / self.total_steps))

    def drop_share(self, step: int) -> float:
        """The share of weights that goes in an exchange."""
        return cosine(self.config.drop_first, self.config.drop_last, step / self.total_steps)

    # Channels ----------------------------------------------------------------------------------------

    def select(self, step: int, view: View) -> Selection:
        """The smallest channels; at the last check those that masks emptied."""
        if view.final:
            return super().select(step, view)
        graph, prunable = view.graph, self._prunable(view)
        counts = [int(prunable[layer.classes].sum()) for layer in graph.layers]
        already = sum(int((prunable & view.state.removed)[layer.classes].sum()) for layer in graph.layers)
        wanted = round(self.channel_share(step) * sum(counts)) - already
        active = self.config.channel_score == "active"
        scores = mean_size(view.state, view.maskable(), view.masks, active=active)
        chosen, withheld = take(
            view.state,
            scores,
            wanted,
            self.config.limits(),
            graph.layers,
            floors=self._floors(graph),
            spared=~prunable,
        )
        note = f"{withheld} channels stay that channel_sparsity asks for: every layer is at its floor"
        return Selection(flags(graph, chosen), exact=False, notes=(note,) if withheld else ())

    def _prunable(self, view: View) -> Tensor:
        """Per class: may it go?

        Raises:
            UsageError: none may.
        """
        graph, limits = view.graph, self.config.limits()
        found = graph.voters() > 0
        for layer in graph.layers:
            found[layer.classes[~layer.removable]] = False
            if not limits.allows(layer.name):
                found[layer.classes] = False
        for slot in making(graph):
            if slot.tensor not in view.maskable():
                found[slot.classes] = False
        if self.config.channels == "inner":
            found &= inner(graph)
        if not bool(found.any()):
            raise UsageError(
                f"channels={self.config.channels!r}, include={self.config.include} and exclude={self.config.exclude} "
                "leave no channel to remove; give channels='all', or channel_sparsity=0"
            )
        return found

    def _floors(self, graph: NeuronGraph) -> list[int]:
        """C (1 - S_c) beta for every layer, and not below the common floor."""
        share = (1.0 - self.config.channel_sparsity) * self.config.channel_floor
        return [max(self.config.floor, int(layer.width * share)) for layer in graph.layers]

    # Weights -----------------------------------------------------------------------------------------

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        """Random masks of density D."""
        if self.config.channel_sparsity:
            self._prunable(view)
        return random_masks(thinned(self.config, view), self.densities(view), view.seed, self.config.weight_floor)

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        """Return new masks: drop the smallest weights, grow those with large gradients."""
        weights = thinned(self.config, view)
        slopes = {name: slope.abs() for name, slope in view.gradients().items() if name in weights}
        masks = {name: view.masks[name] for name in weights}
        count = sum(int(mask.sum()) for mask in masks.values())
        base, ceiling = self._count(view, 1.0 - self.config.weight_sparsity), self._count(view, self.ceiling(step))
        left = min(count, base)
        if step >= self.config.exchange_from * self.total_steps:
            left = min(left, count - math.ceil(self.drop_share(step) * count))
        sizes = {name: weight.abs().masked_fill(~masks[name], -math.inf) for name, weight in weights.items()}
        held = {name: mask & masks[name] for name, mask in self._best(sizes, left).items()}
        scores = {name: slope.masked_fill(held[name], math.inf) for name, slope in slopes.items()}
        return self._best(scores, max(ceiling, left))

    def _count(self, view: View, density: float) -> int:
        """Weights of the dense network that this density leaves."""
        return round(density * sum(math.prod(view.graph.shapes[name]) for name in thinned(self.config, view)))

    def _best(self, scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """So many entries with the highest scores: of all tensors, or of each its share."""
        density, floor = min(1.0, count / sum(score.numel() for score in scores.values())), self.config.weight_floor
        if self.config.ranking == "global":
            return top_of_all(scores, density, floor)
        shapes = {name: tuple(score.shape) for name, score in scores.items()}
        shares = getattr(densities, self.config.distribution)(shapes, 1.0 - density)
        return {name: top(score, kept(score.numel(), shares[name], floor)) for name, score in scores.items()}


def removals(config: ChaseConfig, total_steps: int, mask_every: int) -> range:
    """The steps at which channels go: at least one, not after ``channel_until``."""
    every = config.channel_every or max(1, round(CHANNEL_SHARE * total_steps))
    first = every - (mask_every // 2) % every
    last = max(1, min(round(config.channel_until * total_steps), total_steps - 1))
    return range(first, last + 1, every) if first <= last else range(last, last + 1)


def inner(graph: NeuronGraph) -> Tensor:
    """Per class: does a single weight make it, and does no residual sum carry it?"""
    makers = torch.zeros(graph.classes, dtype=torch.long, device="cpu")
    for slot in making(graph):
        makers[slot.classes.unique()] += 1
    alone = makers == 1
    for join in graph.joins:
        alone[join.stream] = alone[join.branch] = False
    return alone


def making(graph: NeuronGraph) -> list[Slot]:
    """The axes of weights along which neurons are made."""
    makers = {pair for layer in graph.layers for pair in layer.producers}
    return [s for s in graph.slots if (s.tensor, s.axis) in makers and len(graph.shapes[s.tensor]) > 1]


def mean_size(state: GraphState, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, active: bool) -> Tensor:
    """Per class: mean |w| of the weights that make it, float64; 0 for one without weights.

    The mean is over the dense filter, in which what is masked or removed is zero; or over the ``active`` weights.
    """
    graph = state.graph
    total, count = (
        torch.zeros(graph.classes, dtype=torch.float64, device="cpu"),
        torch.zeros(graph.classes, dtype=torch.float64, device="cpu"),
    )
    for slot in making(graph):
        if slot.tensor not in weights:
            continue
        here = state.present(slot.classes)
        rows = weights[slot.tensor].movedim(slot.axis, 0).flatten(1)
        total.index_add_(0, here, rows.abs().double().sum(1).cpu())
        dense = graph.shapes[slot.tensor]
        many = torch.full((len(here),), math.prod(dense) / dense[slot.axis], dtype=torch.float64, device="cpu")
        if active and slot.tensor in masks:
            many = masks[slot.tensor].movedim(slot.axis, 0).flatten(1).sum(1).double().cpu()
        count.index_add_(0, here, many)
    return total / count.clamp(min=1)
