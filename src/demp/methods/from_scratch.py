"""What a user would do instead of pruning: train a smaller network from scratch, for the same steps.

``narrow``: the same architecture with all widths scaled alike until it fits. ``twin``: exactly the shapes of another
network, say of one that DemP made; it tells what training while shrinking is worth beyond knowing the shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from demp.artifact import read_architecture
from demp.errors import UsageError
from demp.graph import NeuronGraph
from demp.graph.streams import strands_and_families
from demp.importance.ranking import flags
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.reaching import TargetConfig, goals_at, missed
from demp.surgery import Limits, plan_cut
from demp.surgery.record import record_from_plain

HALVINGS = 40
"""Halvings of the factor on all widths."""


class FromScratch(Method):
    """Before training: neurons go until the network has its shape, then all weights are drawn anew."""

    def __init__(self, config: Any, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self._done = False

    def requirements(self) -> Requirements:
        """New weights, at the new widths."""
        return Requirements(penalty_on="nothing", collect="batches", new_weights=True)

    def is_due(self, step: int) -> bool:
        """Return whether this is step 0, before training."""
        return step == 0

    def select(self, step: int, view: View) -> Selection:
        """Select, once only, the neurons to remove for the wanted shape."""
        if self._done:
            return Selection(exact=False)
        self._done = True
        removed, notes = self.shape(view)
        return Selection(flags(view.graph, removed & ~view.state.removed), exact=False, notes=notes)

    def shape(self, view: View) -> tuple[Tensor, tuple[str, ...]]:
        """Which classes go, and the notes of the report."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return whether the smaller network has been made already."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a saved state whether the network has been made."""
        self._done = bool(state["done"])


@dataclass(frozen=True, kw_only=True)
class NarrowConfig(TargetConfig):
    """How narrow the network is to be: what a budget allows, or a share of the neurons."""

    target_neuron_sparsity: float = 0.5
    """Share of all neurons that is left out, without a budget."""


class Narrow(FromScratch):
    """The same architecture, all widths scaled alike."""

    name: ClassVar[str] = "narrow"
    summary: ClassVar[str] = "no pruning: the same architecture with all widths scaled to the target, from scratch"
    reference: ClassVar[str] = "the honest opponent of every comparison"
    Config: ClassVar[type[MethodConfig]] = NarrowConfig
    takes_budget: ClassVar[bool] = True
    config: NarrowConfig

    def shape(self, view: View) -> tuple[Tensor, tuple[str, ...]]:
        """The largest factor on all widths with which the target holds."""
        goals = (
            {"neurons": (1 - self.config.target_neuron_sparsity) * view.graph.dense.neurons}
            if self.config.budget is None
            else goals_at(view.meter, self.config.budget, 1.0)
        )
        few, many = 0.0, 1.0
        for _ in range(HALVINGS):
            factor = (few + many) / 2
            if view.meter.lack(goals, scaled(view.graph, factor, self.config.limits())):
                many = factor
            else:
                few = factor
        removed = scaled(view.graph, few, self.config.limits())
        notes = (missed(view.meter, goals, removed),) if view.meter.lack(goals, removed) else ()
        return removed, (f"all widths times {few:.3f}", *notes)


def scaled(graph: NeuronGraph, factor: float, limits: Limits) -> Tensor:
    """Which classes go when every width is multiplied by ``factor``: the last of each layer.

    Widths are rounded at another place in every group of layers of one width, so that the network shrinks evenly as
    the factor falls. Layers of one residual stream stay equally wide, so that their sums stay plain ones.
    """
    groups = together(graph)
    names = sorted(set(groups.values()))
    wanted: dict[str, Tensor] = {}
    for layer in graph.layers:
        place = (names.index(groups[layer.name]) + 0.5) / len(names)
        keep = min(layer.width, max(limits.floor, int(factor * layer.width + place)))
        wanted[layer.name] = torch.arange(layer.width, device="cpu") >= keep
    return plan_cut(graph.dense, wanted, limits).after.removed


def together(graph: NeuronGraph) -> dict[str, int]:
    """Layer name -> number of the group of layers that keep one width: those of a stream, or that share neurons."""
    family = strands_and_families(graph)[1] if graph.joins else torch.arange(graph.classes, device="cpu")
    streams = graph.none_removed()
    for join in graph.joins:
        streams[join.stream] = streams[join.branch] = True
    found: dict[str, int] = {}
    for layer in graph.layers:
        first = int(layer.classes[0])
        found[layer.name] = int(family[first]) if bool(streams[first]) else graph.classes + first
    return found


@dataclass(frozen=True, kw_only=True)
class TwinConfig(MethodConfig):
    """The network whose final widths the new one gets."""

    like: str = ""
    """A run folder, or a saved model (``demp.save``), of the same dense architecture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None:
            raise UsageError("a twin has the shapes of another network, so it takes no budget; leave the budget out")


class Twin(FromScratch):
    """The final shapes of another run, from scratch."""

    name: ClassVar[str] = "twin"
    summary: ClassVar[str] = "no pruning: exactly the shapes that another run ended with, from scratch"
    reference: ClassVar[str] = "Liu et al. 2019, Rethinking the Value of Network Pruning"
    Config: ClassVar[type[MethodConfig]] = TwinConfig
    config: TwinConfig

    def raise_if_unfit(self, graph: NeuronGraph) -> None:
        """Refuse to train a twin without an original, or one of another dense architecture.

        Raises:
            UsageError: ``like`` is empty, or what lies there was made from another dense network.
        """
        if not self.config.like:
            raise UsageError("whose twin? give like=, the run folder or the saved model whose shapes it is to have")
        removed_of(graph, self.config.like)

    def shape(self, view: View) -> tuple[Tensor, tuple[str, ...]]:
        """What is not there in the other network."""
        return removed_of(view.graph, self.config.like), (f"shapes of {self.config.like}",)


def architecture_of(path: Path) -> Mapping[str, Any]:
    """The stored architecture of a saved model, or of the model in a run folder."""
    inside = path / "model"
    return read_architecture(inside if inside.is_dir() else path)


def removed_of(graph: NeuronGraph, where: str) -> Tensor:
    """Per class of the dense graph: is it not there in the network that is stored at ``where``?

    Raises:
        UsageError: that network was made from another dense one.
    """
    plain = architecture_of(Path(where)).get("record")
    removed = graph.none_removed()
    if plain is None:
        return removed
    record = record_from_plain(plain)
    if {name: tuple(shape) for name, shape in record.dense_shapes.items()} != graph.shapes:
        raise UsageError(f"{where} was made from another dense network than this one; build the same model")
    there = torch.ones(graph.classes, dtype=torch.bool, device="cpu")
    for slot in graph.slots:
        kept = record.kept.get((slot.tensor, slot.axis))
        if kept is not None:
            lost = torch.ones(len(slot.classes), dtype=torch.bool, device="cpu")
            lost[kept] = False
            there[slot.classes[lost]] = False
    return ~there
