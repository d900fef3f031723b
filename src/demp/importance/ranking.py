"""Which neurons a ranking removes: the lowest scores of the whole network, or of each layer, down to a target."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from demp.graph import GraphState, Layer, NeuronGraph
from demp.surgery import Limits

Found = tuple[dict[str, Tensor], tuple[str, ...]]
"""Layer name -> neurons to remove, and the notes of the report."""


def lowest(state: GraphState, scores: Tensor, target: float, limits: Limits) -> Found:
    """Layer name -> neurons to remove so that ``target`` of the dense neurons is; and the notes of the report.

    ``scores`` has one number per class, infinite where it is not ranked and stays; all layers share one ranking, and
    ties go in the order of the network. A neuron that several layers carry counts in each. No layer falls below the
    floor: where it would, the ranking goes on with the rest, and if the target cannot be reached it stops there and
    says so.
    """
    graph = state.graph
    wanted = round(target * graph.dense.neurons) - (graph.dense.neurons - state.neurons)
    chosen, left = take(state, scores, wanted, limits, graph.layers)
    notes = (short(state.without(chosen), target),) if left > 0 else ()
    return flags(graph, chosen), notes


def lowest_of_each_layer(state: GraphState, scores: Tensor, target: float, limits: Limits) -> Found:
    """The same with ``target`` reached in every layer on its own."""
    after, missed = state, False
    for layer in state.graph.layers:
        wanted = round(target * layer.width) - int(after.removed[layer.classes].sum())
        more, left = take(after, scores, wanted, limits, (layer,))
        after, missed = after.without(more), missed or left > 0
    notes = (short(after, target),) if missed else ()
    return flags(state.graph, after.removed & ~state.removed), notes


RankingName = Literal["global", "layer"]
"""What `RANKINGS` has."""
RANKINGS: dict[RankingName, Callable[[GraphState, Tensor, float, Limits], Found]] = {
    "global": lowest,
    "layer": lowest_of_each_layer,
}


def take(
    state: GraphState,
    scores: Tensor,
    wanted: int,
    limits: Limits,
    among: Sequence[Layer],
    *,
    floors: Sequence[int] | None = None,
    spared: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Classes to remove, lowest first, and how many neurons of the layers ``among`` the floor withholds.

    A class whose neurons in these layers are more than are wanted is passed over. ``floors`` has one per layer of the
    graph, in place of the common one; ``spared`` classes stay.
    """
    graph, names = state.graph, {layer.name for layer in among}
    least = [limits.floor] * len(graph.layers) if floors is None else floors
    widths = [int((~state.removed[layer.classes]).sum()) for layer in graph.layers]
    carriers: dict[int, list[int]] = {}
    for index, layer in enumerate(graph.layers):
        for c in layer.classes.tolist():
            carriers.setdefault(c, []).append(index)
    chosen, too_big = graph.none_removed(), False
    for c in candidates(state, scores, limits, among, spared).tolist():
        if wanted <= 0:
            break
        layers = carriers[c]
        if any(widths[index] <= least[index] for index in layers):
            continue
        neurons = sum(graph.layers[index].name in names for index in layers)
        if neurons > wanted:
            too_big = True
            continue
        chosen[c] = True
        wanted -= neurons
        for index in layers:
            widths[index] -= 1
    return chosen, 0 if too_big else max(wanted, 0)


def candidates(
    state: GraphState, scores: Tensor, limits: Limits, among: Sequence[Layer], spared: Tensor | None
) -> Tensor:
    """Classes of the layers ``among`` that limits, scores and ``spared`` let go, lowest score first."""
    graph, barred = state.graph, state.removed.clone()
    barred[0] = True
    if spared is not None:
        barred |= spared
    for layer in graph.layers:
        barred[layer.classes if not limits.allows(layer.name) else layer.classes[~layer.removable]] = True
    barred |= (graph.voters() == 0) | (scores == math.inf)
    open_to = torch.zeros_like(barred)
    for layer in among:
        open_to[layer.classes] = True
    found = (open_to & ~barred).nonzero().flatten()
    return found[torch.sort(scores[found], stable=True).indices]


def flags(graph: NeuronGraph, classes: Tensor) -> dict[str, Tensor]:
    """Booleans per neuron of each layer that loses some."""
    marked = {layer.name: classes[layer.classes] for layer in graph.layers}
    return {name: flag for name, flag in marked.items() if bool(flag.any())}


def short(state: GraphState, target: float) -> str:
    """The target was out of reach."""
    reached = 1 - state.neurons / state.graph.dense.neurons
    return (
        f"stopped at neuron sparsity {reached:.3f} of {target:g}: every layer left is at its floor, excluded or refused"
    )
