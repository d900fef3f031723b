"""What a cut did: small, frozen, JSON-ready."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from demp.graph import NeuronGraph


@dataclass(frozen=True)
class LayerCut:
    """One layer's width before and after, and a hash of the kept indices (dense numbering)."""

    before: int
    kept: int
    hash: str


@dataclass(frozen=True)
class CutReport:
    """One cut, or the finding that there was nothing to cut."""

    step: int | None
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
    """The same against the network whose dead neurons still spoke; 0 by construction for exact criteria."""
    held: dict[str, str]
    """Layer -> why some of its dead neurons stayed."""
    hash: str
    judged: dict[str, int] = field(default_factory=dict)
    """Batches and examples behind the judgement."""
    notes: tuple[str, ...] = ()

    @property
    def happened(self) -> bool:
        """Was anything removed?"""
        return self.removed > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        if not self.happened:
            return f"cut{at}: nothing to remove ({self.neurons_after} neurons)"
        return (
            f"cut{at}: {self.removed} neurons of {self.neurons_before} removed, parameters "
            f"{self.parameters_before:,} -> {self.parameters_after:,}, {self.seconds:.2f} s"
        )


def layer_cuts(graph: NeuronGraph, before: Tensor, after: Tensor) -> dict[str, LayerCut]:
    """Widths of every layer before and after."""
    cuts = {}
    for layer in graph.layers:
        keep = (~after[layer.classes]).nonzero().flatten()
        digest = hashlib.sha256(repr(keep.tolist()).encode()).hexdigest()[:12]
        cuts[layer.name] = LayerCut(int((~before[layer.classes]).sum()), len(keep), digest)
    return cuts
