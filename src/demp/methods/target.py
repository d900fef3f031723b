"""A share of the neurons to remove, and the strength that grows until it is reached (App. H.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from demp.activity import ranked
from demp.graph import NeuronGraph
from demp.methods.base import Selection, View
from demp.surgery import Limits, plan_cut


class NeuronTarget:
    """How far a run is on the way to its target: removes no more than that, and asks for more strength until then."""

    def __init__(self, share: float, factor: float) -> None:
        self.share, self.factor = share, factor
        self.growth = 1.0
        """By what the strength is multiplied now."""
        self.met = False

    def select(self, view: View, limits: Limits, *, past_peak: bool) -> Selection:
        """The dead, at most as many as the target asks for; too few of them past the peak raise the strength."""
        graph, left = view.graph, view.state.neurons
        count = left - (graph.dense.neurons - round(self.share * graph.dense.neurons))
        if count <= 0:
            self.met = True
            return Selection()
        detection = view.detect()
        flatness = ranked(graph, detection.deviations) if detection.deviations else None
        plan = plan_cut(view.state, detection.dead, limits, flatness)
        self.met = left - plan.after.neurons >= count
        if not self.met and past_peak:
            self.growth *= self.factor
        advice = short_of(self.share, graph.dense.neurons, plan.after.neurons) if view.final and not self.met else ""
        return Selection(at_most(count, graph, plan.removes, flatness), advice=advice)

    def state_dict(self) -> dict[str, Any]:
        """Return the growth of the strength and whether the target is met."""
        return {"growth": self.growth, "target_met": self.met}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run was."""
        self.growth, self.met = float(state["growth"]), bool(state["target_met"])


def short_of(share: float, neurons: int, left: int) -> str:
    """The target was not reached: by how much, and what to change."""
    return (
        f"{neurons - left:,} of {neurons:,} neurons are removed, and target_neuron_sparsity={share:g} asks for "
        f"{round(share * neurons):,}: no more of them are dead. Give budget=demp.Budget(neurons={1 - share:g}), which "
        "needs no dead neurons, or raise peak_strength or target_growth, or train longer"
    )


def at_most(count: int, graph: NeuronGraph, going: Tensor, flatness: Tensor | None = None) -> dict[str, Tensor]:
    """Of the classes that could go, the flattest that make up ``count`` neurons; coupled ones count in every layer.

    Without ``flatness`` (one number per class, nan where nothing is known), and of equals, the first.
    """
    sizes = torch.zeros(graph.classes, dtype=torch.long, device="cpu")
    for layer in graph.layers:
        sizes[layer.classes] += 1
    chosen = graph.none_removed()
    order = going.nonzero().flatten()
    if flatness is not None:
        order = order[flatness[order].nan_to_num(0.0).argsort(stable=True)]
    for c in order.tolist():
        if sizes[c] <= count:
            chosen[c] = True
            count -= int(sizes[c])
    return {layer.name: chosen[layer.classes] for layer in graph.layers}
