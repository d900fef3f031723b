"""What became of the dead: shares, overlap with the dead of earlier looks, revivals (paper, App. C); the saturated."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from demp.activity.probe import Detection
from demp.graph import GraphState, NeuronGraph


@dataclass(frozen=True)
class LayerActivity:
    """One layer in one snapshot."""

    width: int
    dead: int
    revived: int
    """Neurons that were dead in the snapshot before and are alive now."""
    saturated: int = 0
    """Neurons that are constant without being zero; they are not among the dead."""

    @property
    def dead_share(self) -> float:
        """Return the share of dead neurons, 0 for a layer without neurons."""
        return self.dead / self.width if self.width else 0.0


@dataclass(frozen=True)
class Snapshot:
    """Which neurons are dead at one moment, in dense numbering. A neuron that was removed counts as dead."""

    batches: int
    examples: int
    layers: dict[str, LayerActivity]
    dead_share: float
    overlap: float
    """|X & Y| / min(|X|, |Y|), X every neuron that was dead in an earlier snapshot, Y those dead now (Sokar et al.
    2023, as in App. C); nan while either is empty."""
    revived: int
    still: float = math.nan
    """|X & Y| / |X|: of all that were ever dead, the share that is dead now, as the authors' code computes it for
    Fig. 8; nan while none was."""
    saturated_share: float = 0.0
    """Neurons that are constant without being zero, over all neurons; only the criterion ``saturated`` looks for them.
    """


class Deaths:
    """The dead sets of one network over time, in dense numbering."""

    def __init__(self, graph: NeuronGraph) -> None:
        self._graph = graph
        self._ever = {layer.name: torch.zeros(layer.width, dtype=torch.bool, device="cpu") for layer in graph.layers}
        self._last = {name: flags.clone() for name, flags in self._ever.items()}

    def add(self, detection: Detection, state: GraphState) -> Snapshot:
        """The snapshot of a detection on the network of this state."""
        layers, meet = {}, 0
        before = sum(int(flags.sum()) for flags in self._ever.values())
        for layer in self._graph.layers:
            name, saturated = layer.name, detection.saturated(layer.name)
            dead = (detection.dead[name] & ~saturated) | state.removed[layer.classes]
            revived = self._last[name] & ~dead
            layers[name] = LayerActivity(layer.width, int(dead.sum()), int(revived.sum()), int(saturated.sum()))
            meet += int((self._ever[name] & dead).sum())
            self._ever[name] |= dead
            self._last[name] = dead
        counts = zip(*((at.dead, at.saturated, at.width) for at in layers.values()), strict=True)
        now, constant, width = (sum(values) for values in counts)
        return Snapshot(
            detection.batches,
            detection.examples,
            layers,
            now / width if width else 0.0,
            meet / min(before, now) if before and now else math.nan,
            sum(layer.revived for layer in layers.values()),
            meet / before if before else math.nan,
            constant / width if width else 0.0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the neurons ever dead and last dead, as tensors by layer."""
        return {"ever": dict(self._ever), "last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved run was."""
        self._ever = {name: flags.bool().cpu() for name, flags in state["ever"].items()}
        self._last = {name: flags.bool().cpu() for name, flags in state["last"].items()}
