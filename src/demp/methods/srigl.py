"""SRigL: sparse training in which every neuron of a layer has the same number of weights, or none.

Every ``mask_every`` steps, in each layer on its own (n weights are there, f_t = alpha / 2 (1 + cos(pi t / T_end))):
    K = n - int(f_t n): what magnitude keeps; n - K: what the dense gradient may bring
    a weight is salient if it is among the K largest |w| or among the n - K largest |gradient|
    a neuron with fewer than max(1, int(gamma_sal k)) salient weights is ablated: all its weights go
    the others share the layer's budget: k = budget // active neurons, the same for all of them
    each keeps its weights among the K largest of the layer, but no more than k, and grows the rest by |gradient|

An ablated neuron is looked at again at each update and returns when enough of its weights are salient.

Where it differs from the authors' code: that drops arbitrary weights of a neuron that has more than k (it sorts
booleans), here the smallest go; it may ablate the last layer, which the paper spares; it lets zeros fill up the K
largest. In both a weight that is dropped and grown in one update keeps its value.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.files.checks import check_portion
from demp.graph import NeuronGraph
from demp.importance.ranking import flags
from demp.masking.distributions import kept, top
from demp.masking.masks import constant
from demp.methods.base import MethodConfig, Requirements, Selection, View
from demp.methods.sparse import MaskConfig, SparseMethod, matches, thinned, uniform_scores
from demp.regularization.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class SRigLConfig(MaskConfig):
    """Every knob of SRigL: when masks change, and when a neuron has too few salient weights to stay."""

    distribution: Literal["uniform", "erk"] = "erk"
    """``erk``, or ``uniform``, which the authors take for ViT."""
    mask_every: int | None = None
    """Delta T: steps between updates; None: 0.1 % of the run, at least 1 (the authors' 100 on CIFAR-10)."""
    mask_from: float = 0.0
    """Share of the run before the first update; at step 0 there is none."""
    mask_until: float = 0.75
    """T_end: share of the run at which the masks become final."""
    drop_fraction: float = 0.3
    """alpha: share of a layer's weights that may change at the first update, from where it falls by half a cosine."""
    min_salient: float = 0.3
    """gamma_sal: share of the fan-in that must be salient for a neuron to stay; 0 ablates none. The authors take 0.95
    for ViT."""
    min_salient_of: Literal["constant", "dense"] = "constant"
    """Of which fan-in: ``constant``, the one that all neurons have before any is ablated (the published settings), or
    ``dense`` (the default of the authors' class)."""
    spare: tuple[str, ...] = ()
    """Globs of weights whose neurons are never ablated, besides the last weight of the network."""
    sparse_init: bool = True
    """Multiply the initial weights by sqrt(dense fan-in / k): their variance fits the inputs that are left. The authors
    draw new weights with a standard deviation of 2 / k. False where training begins with trained weights."""
    remove_ablated: bool = True
    """At the end ablated neurons go for real; the constant that their bias makes moves into their readers where that
    lowers the drift. False: only those go that nothing reads or whose output is zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("drop_fraction", "min_salient"):
            check_portion(name, getattr(self, name))
        if isinstance(self.spare, str):
            raise UsageError(f"spare is the string {self.spare!r}; give a tuple of globs")


class SRigL(SparseMethod):
    """Sparse training with the same number of weights for every neuron; one without salient weights has none."""

    name: ClassVar[str] = "srigl"
    summary: ClassVar[str] = "sparse from the start, the same fan-in for every neuron; neurons that lose it are ablated"
    reference: ClassVar[str] = "Dynamic Sparse Training with Structured Sparsity (Lasby 2024)"
    Config: ClassVar[type[MethodConfig]] = SRigLConfig
    update_share: ClassVar[float] = 0.001
    """The authors' 100 steps of the 97,656 on CIFAR-10; on ImageNet 800 of 256,000."""
    config: SRigLConfig

    def __init__(self, config: SRigLConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.window = replace(self.window, first=max(self.window.first, 1), last=self.window.last - 1)

    def requirements(self) -> Requirements:
        """Return that what ablated neurons still say moves to their readers, if they go."""
        return Requirements(collect="batches", constants=self.config.remove_ablated)

    def fraction(self, step: int) -> float:
        """Return f_t, the share of weights that an update exchanges."""
        return cosine(self.config.drop_fraction, 0.0, min(1.0, step / (self.config.mask_until * self.total_steps)))

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        """Fan-in k for every neuron, at random; a tensor of density 1 gets no mask.

        Raises:
            UsageError: a layer has fewer weights than neurons.
        """
        masks = {}
        for layer in self._layers(view):
            if layer.fan_in < 1:
                raise UsageError(
                    f"weight_sparsity={self.config.weight_sparsity} leaves {layer.budget} weights of {layer.name} for "
                    f"{layer.neurons} neurons, less than one for each; lower it, or name this one in mask_exclude"
                )
            if layer.budget < layer.weight.numel():
                random = layer.rows(uniform_scores(layer.weight, view.seed, -1, layer.name))
                masks[layer.name] = layer.back(highest(random, layer.fan_in))
        return masks

    def initial_factors(self, view: View) -> dict[str, float]:
        """Return the factors of sparse-aware initialisation by parameter name."""
        if not self.config.sparse_init:
            return {}
        return {layer.name: math.sqrt(layer.dense / layer.fan_in) for layer in self._layers(view)}

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        """Return new masks: drop weights, ablate neurons, grow weights."""
        slopes, last, masks = view.gradients(), list(view.maskable())[-1], {}
        for layer in self._layers(view):
            if layer.name not in view.masks:
                continue
            stay = layer.name == last or matches(layer.name, self.config.spare)
            new = updated(
                layer.rows(layer.weight.abs()),
                layer.rows(slopes[layer.name].abs()),
                layer.rows(view.masks[layer.name]),
                budget=layer.budget,
                fraction=self.fraction(step),
                least=0 if stay else self.least(layer.fan_in, layer.dense),
            )
            masks[layer.name] = layer.back(new)
        return masks

    def select(self, step: int, view: View) -> Selection:
        """At the last check: neurons that masks emptied, and ablated ones that say a constant."""
        found = super().select(step, view)
        if not view.final or not self.config.remove_ablated:
            return found
        going = view.graph.none_removed()
        for name, neurons in found.neurons.items():
            going[view.graph.layer(name).classes[neurons]] = True
        saying = constant(view.state, view.masks) & ~going
        if not bool(saying.any()):
            return found
        return Selection(flags(view.graph, going | saying), exact=False, notes=found.notes)

    def least(self, fan_in: int, dense: int) -> int:
        """Salient weights that a neuron needs."""
        if self.config.min_salient == 0:
            return 0
        return max(1, int(self.config.min_salient * (fan_in if self.config.min_salient_of == "constant" else dense)))

    def _layers(self, view: View) -> list["SparseLayer"]:
        """Every weight that masks may thin out."""
        shares, floor = self.densities(view), self.config.weight_floor
        return [
            SparseLayer(name, weight, neuron_axis(view.graph, name), kept(weight.numel(), shares[name], floor))
            for name, weight in thinned(self.config, view).items()
        ]


@dataclass(frozen=True)
class SparseLayer:
    """One weight, the axis along which its neurons lie, and how many entries it may have."""

    name: str
    weight: Tensor
    axis: int
    budget: int

    @property
    def neurons(self) -> int:
        """Return the number of neurons, each a row of weights."""
        return self.weight.shape[self.axis]

    @property
    def dense(self) -> int:
        """Return the dense fan-in, the number of entries per neuron."""
        return self.weight.numel() // self.neurons

    @property
    def fan_in(self) -> int:
        """The fan-in k that all neurons have before any is ablated."""
        return self.budget // self.neurons

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor in the shape of the weight, with one row for each neuron."""
        return tensor.movedim(self.axis, 0).flatten(1)

    def back(self, rows: Tensor) -> Tensor:
        """Return rows of neurons in the original shape of the weight."""
        return rows.view(self.weight.movedim(self.axis, 0).shape).movedim(0, self.axis)


@torch.no_grad()
def updated(size: Tensor, slope: Tensor, mask: Tensor, *, budget: int, fraction: float, least: int) -> Tensor:
    """The new mask of a layer: K by magnitude, the others by gradient, as many for every neuron that stays.

    ``size`` is |w|, ``slope`` is |gradient|, of masked weights as well; all have a row for each neuron.
    """
    count = int(mask.sum())
    keep = min(count - int(count * fraction), int((size > 0).sum()))
    alive = salient(size, slope, keep, count - keep, budget, least)[:, None]
    size = size.masked_fill(~alive, 0.0)
    fan_in = max(1, budget // int(alive.sum()))
    large = top(size, keep) & (size > 0)
    stays = highest(torch.where(large, size, -1.0), fan_in) & large
    return highest(torch.where(stays, torch.inf, slope), fan_in) & alive


def salient(size: Tensor, slope: Tensor, keep: int, grow: int, budget: int, least: int) -> Tensor:
    """Neurons with enough salient weights; if too few have them to hold the budget, the next best stay as well."""
    counts = (top(size, keep) | top(slope, grow)).sum(1)
    floor = max(1, -(-budget // size.shape[1]))
    return counts >= counts.sort(descending=True).values[floor - 1].clamp(max=least)


def highest(scores: Tensor, count: int) -> Tensor:
    """The highest scores of every row; of equal ones the first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def neuron_axis(graph: NeuronGraph, name: str) -> int:
    """The axis of a weight along which its neurons lie.

    Raises:
        UsageError: the weight makes neurons in two ways, or its groups share a row.
    """
    uses = [use for use in graph.contractions if use.weight == name]
    axes = {use.axis for use in uses}
    axis = axes.pop()
    dense = graph.shapes[name]
    if axes or axis is None or any(use.outputs is not None and len(use.outputs) != dense[axis] for use in uses):
        raise UsageError(
            f"srigl gives every neuron the same number of weights, and {name} does not have one row for each neuron (a "
            "transposed convolution with groups, or a weight that is used in two ways); name it in mask_exclude"
        )
    return axis
