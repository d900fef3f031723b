"""What a cut did: small, frozen, JSON-ready."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from demp.graph import GraphState
from demp.graph.streams import strands_and_families


@dataclass(frozen=True)
class LayerCut:
    """One layer's width before and after, and a hash of the kept indices (dense numbering)."""

    before: int
    kept: int
    hash: str


@dataclass(frozen=True)
class Depths:
    """What was removed since the dense model, by how deep removal must reach: each adds to the ones before."""

    internal: tuple[int, int]
    """Neurons inside blocks and of plain layers; parameters removed with them."""
    stream: tuple[int, int]
    """Channels of residual streams that no block keeps."""
    block: tuple[int, int]
    """Channels removed from some block outputs and alive in others: the sums between them then add two widths."""


@dataclass(frozen=True)
class CutReport:
    """What one cut did and what its proof measured; or the finding that there was nothing to cut."""

    step: int | None
    """The optimizer step of the run; None of a cut outside of one."""
    removed: int
    """Neurons removed, counted over all layers."""
    layers: dict[str, LayerCut]
    neurons_before: int
    neurons_after: int
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    seconds: float
    """Whole transaction; ``surgery_seconds`` of it without the probe forwards."""
    surgery_seconds: float
    difference: float | None
    """Largest output difference over the output scale between before and after; None: not verified."""
    drift: float | None
    """Largest change of the outputs over the output scale, against the network before the cut: what was lost. 0 by
    construction for exact criteria; ``difference`` is the proof of the surgery, against the network in which removed
    neurons are zero, or their constants."""
    held: dict[str, str]
    """Layer -> why some of its dead neurons stayed."""
    hash: str
    judged: dict[str, int] = field(default_factory=dict)
    """Batches and examples behind the detection."""
    notes: tuple[str, ...] = ()
    depths: Depths | None = None
    dead: int | None = None
    """Of the removed, those that were zero on the examples; None where neurons were chosen for something else and
    this is not known. ``saturated``: those that were another constant, which their readers keep."""
    saturated: int | None = None
    copies: dict[str, float | None] = field(default_factory=dict)
    """Copy of the model -> largest change of its outputs over their scale; None: tensors alone, or it does not run."""

    @property
    def happened(self) -> bool:
        """Return whether the cut removed any neuron."""
        return self.removed > 0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        return "; ".join((self.outcome(), *self.notes))

    def outcome(self) -> str:
        """What was cut, and by how much outputs of copies changed, in a line without the notes."""
        changes = ", ".join(
            f"{name} {'not measured' if drift is None else f'{drift:.1e}'}" for name, drift in self.copies.items()
        )
        return self._cut() + (f"; outputs of copies changed by: {changes}" if changes else "")

    def _cut(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        if not self.happened:
            return f"cut{at}: nothing to remove ({self.neurons_after} neurons)"
        apart = f" ({self.saturated} of them saturated, drift {self.drift or 0:.1e})" if self.saturated else ""
        return (
            f"cut{at}: {self.removed} neurons of {self.neurons_before} removed{apart}, parameters "
            f"{self.parameters_before:,} -> {self.parameters_after:,}, {self.seconds:.2f} s"
        )


def nothing_removed(
    state: GraphState, parameters: Mapping[str, Tensor], *, step: int | None, notes: tuple[str, ...]
) -> CutReport:
    """The report of a check that could not look at the model, or not change it."""
    entries = sum(p.numel() for p in parameters.values())
    neurons, flops = state.neurons, state.flops()
    return CutReport(
        step=step,
        removed=0,
        layers=layer_cuts(state, state),
        neurons_before=neurons,
        neurons_after=neurons,
        parameters_before=entries,
        parameters_after=entries,
        flops_before=flops,
        flops_after=flops,
        seconds=0.0,
        surgery_seconds=0.0,
        difference=None,
        drift=None,
        held={},
        hash=state.hash,
        notes=notes,
        depths=depths(state, set(parameters)),
        dead=0,
        saturated=0,
    )


def depths(state: GraphState, parameters: set[str]) -> Depths:
    """Neurons and entries of the named parameters that are removed, by depth."""
    graph, removed = state.graph, state.removed
    in_stream, everywhere = graph.none_removed(), removed.clone()
    if graph.joins:
        strand, _ = strands_and_families(graph)
        for join in graph.joins:
            in_stream[join.stream] = in_stream[join.branch] = True
        alive = strand[(~removed & in_stream).nonzero().flatten()].unique()
        everywhere = removed & ~torch.isin(strand, alive)
    found, seen = [], (0, 0)
    neurons, dense = graph.dense.neurons, graph.dense.parameters(parameters)
    for some in (removed & ~in_stream, everywhere | (removed & ~in_stream), removed):
        part = graph.at(some)
        now = neurons - part.neurons, dense - part.parameters(parameters)
        found.append((now[0] - seen[0], now[1] - seen[1]))
        seen = now
    return Depths(*found)


def layer_cuts(before: GraphState, after: GraphState) -> dict[str, LayerCut]:
    """Widths of every layer before and after."""
    cuts = {}
    for layer in before.graph.layers:
        keep = (~after.removed[layer.classes]).nonzero().flatten()
        digest = hashlib.sha256(repr(keep.tolist()).encode()).hexdigest()[:12]
        cuts[layer.name] = LayerCut(before.widths[layer.name], len(keep), digest)
    return cuts
