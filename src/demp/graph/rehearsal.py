"""Rehearse a cut on stand-in tensors: a forward with a width written into it fails here, not in the user's run."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from demp.graph.attributes import attributes_of
from demp.graph.call_plans import plan_calls
from demp.graph.inputs import tensors_in
from demp.graph.joins import joined
from demp.graph.neurons import GraphState, NeuronGraph
from demp.graph.numbers import WidthError
from demp.graph.order import is_whole
from demp.graph.parts import Refusal
from demp.graph.places import failing_line

HARD_CODED = "the forward has this width written into it (a view, split or slice with a constant, or a number)"
HARD_CODED_IN_TRAINING = "the training forward has this width written into it (in an auxiliary head, or a number)"

MANY = 4
"""So many groups of the same names, and they are asked about as one."""
COUNTS = 7
"""From one to so many neurons go from the groups of a rehearsal, one after the other."""

Forward = Callable[[Mapping[str, Tensor]], Any]


def raise_if_hard_coded(
    graph: NeuronGraph, model: nn.Module, tensors: Mapping[str, Tensor], forward: Forward, reference: Any, reason: str
) -> NeuronGraph:
    """The graph without the groups of layers whose narrowing makes the forward fail or its output change shape.

    The ``reason`` of their refusal is given the line of the user's code that failed.
    """
    groups, lines = coupled_groups(graph), dict[str, str]()
    failing = find_failing(groups, lambda some: survives(graph, model, tensors, forward, reference, some, lines))
    if not failing:
        return graph
    names = {name for group in failing for name in group}
    layers = tuple(
        replace(layer, removable=torch.zeros_like(layer.removable)) if layer.name in names else layer
        for layer in graph.layers
    )
    refused = tuple(
        Refusal(layer.name, reason + lines.get(kind_of(layer.name), ""), int(layer.removable.sum()))
        for layer in graph.layers
        if layer.name in names and bool(layer.removable.any())
    )
    kept = torch.zeros(graph.classes, dtype=torch.bool, device="cpu")
    for layer in layers:
        kept[layer.classes[layer.removable]] = True
    slots = tuple(slot for slot in graph.slots if bool(kept[slot.classes].any()))
    return replace(
        graph,
        layers=layers,
        refused=graph.refused + refused,
        slots=slots,
        index={layer.name: layer for layer in layers},
    )


def as_refused(graph: NeuronGraph, last: NeuronGraph) -> NeuronGraph:
    """The graph with the reasons of another, in which a cut plans more of the forward: the line that fails even so."""
    why = {refusal.name: refusal for refusal in last.refused if refusal.reason.startswith(HARD_CODED)}
    refused = tuple(why.get(one.name, one) if one.reason.startswith(HARD_CODED) else one for one in graph.refused)
    return graph if refused == graph.refused else replace(graph, refused=refused)


def coupled_groups(graph: NeuronGraph) -> list[list[str]]:
    """Layers that share neurons, together; only those with something to remove."""
    seen: set[str] = set()
    groups = []
    for layer in graph.layers:
        if layer.name in seen or not bool(layer.removable.any()):
            continue
        group, todo = [], [layer.name]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                group.append(name)
                todo.extend(graph.index[name].coupled)
        groups.append(group)
    return groups


def find_failing(groups: list[list[str]], survive: Callable[[list[list[str]]], bool]) -> list[list[str]]:
    """Groups that fail, by halving; one call when all is well.

    Groups that have the same names in other blocks are asked about together; where the first, the middle and the last
    of many fail by themselves, all of them count as failing.
    """
    if not groups or survive(groups):
        return []
    if len(groups) == 1:
        return groups
    kinds: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for group in groups:
        kinds[tuple(map(kind_of, group))].append(group)
    if 1 < len(kinds) <= len(groups) / MANY:
        return [group for kind in kinds.values() for group in find_failing(kind, survive)]
    samples = (0, len(groups) // 2, -1) if len(kinds) == 1 and len(groups) >= MANY else ()
    if samples and not any(survive([groups[at]]) for at in samples):
        return groups
    half = len(groups) // 2
    return find_failing(groups[:half], survive) + find_failing(groups[half:], survive)


def kind_of(layer: str) -> str:
    """The name of a layer without the numbers of blocks: layers that stand in the same place of their block."""
    return re.sub(r"\d+", "", layer)


def survives(
    graph: NeuronGraph,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    forward: Forward,
    reference: Any,
    groups: list[list[str]],
    lines: dict[str, str] | None = None,
) -> bool:
    """Does the forward run with a few neurons fewer in each group, and give outputs of the same shape?

    In which line it fails for a group alone goes into ``lines``, by kind of layer.

    Other channels go in every group, and other numbers of them: sums of two widths are rehearsed, and a group that
    takes its width from another's shape fails.
    """
    removed = graph.none_removed()
    for number, group in enumerate(groups):
        for layer in (graph.index[name] for name in group):
            if bool(layer.removable.any()) and not bool(removed[layer.classes].any()) and layer.width > 1:
                some = layer.classes[layer.removable]
                many = 1 + number % min(COUNTS, layer.width - 1)
                removed[some[(number + torch.arange(many, device="cpu")) % len(some)]] = True
    removed[graph.last_of_slots(graph.none_removed(), removed)] = False
    state = graph.at(removed)
    small = shrunken(state, tensors)
    try:
        with (
            attributes_of(model, state, small),
            joined(model, state.residual_adds, plan_calls(state, rehearsing=True)),
        ):
            out = forward(small)
    except Exception as error:  # any failure of the user's forward means the same: this width cannot change
        line = error.line if isinstance(error, WidthError) else failing_line(error)
        if lines is not None and line and len(groups) == 1:
            lines.update(dict.fromkeys(map(kind_of, groups[0]), f"; with fewer it fails in {line}"))
        return False
    return shapes_of(out) == shapes_of(reference)


def shrunken(state: GraphState, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins at the widths that are left."""
    small = dict(tensors)
    for slot in state.graph.slots:
        keep = state.kept(slot.classes)
        if not is_whole(keep, len(slot.classes)):
            tensor = small[slot.tensor]
            small[slot.tensor] = (
                tensor.detach().index_select(slot.axis, keep.to(tensor.device)).requires_grad_(tensor.requires_grad)
            )
    return small


def shapes_of(tree: Any) -> list[tuple[int, ...]]:
    """Shapes of all tensors in a nested output."""
    return [tuple(tensor.shape) for tensor in tensors_in(tree)]
