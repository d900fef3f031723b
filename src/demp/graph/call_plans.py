"""How the calls of a graph are carried out at the widths that are left (``graph.calls``)."""

from collections import defaultdict
from collections.abc import Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from demp.graph.calls import CallPlan
from demp.graph.neurons import GraphState, NeuronGraph, removable_classes
from demp.graph.parts import SizedCall
from demp.graph.streams import free_streams

BY_NUMBERS = ("split", "slice", "view")
"""Kinds that take numbers, which may be the widths of other tensors: those change before the call's own do."""


def plan_calls(state: GraphState, *, rehearsing: bool = False) -> dict[str, dict[str, CallPlan]]:
    """Module path -> ``kind:number`` -> how the call is carried out; calls that run as they are written have no plan.

    Every module with calls is there, also without a plan.

    A rehearsal also looks at views that split channels: do they do so in the same way?
    """
    plans: dict[str, dict[str, CallPlan]] = defaultdict(dict)
    for call in state.graph.calls:
        module, kind, number = call.seat
        plan = plan_call(call, state) if call.needed or call.before or rehearsing else None
        plans[module] |= {} if plan is None else {f"{kind}:{number}": plan}
    return dict(plans)


def plan_call(call: SizedCall, state: GraphState) -> CallPlan | None:
    """One call at the widths and in the order of a state."""
    here = state.kept(call.source)
    kind, dense = call.seat[1], len(call.source)
    own: Any = {"calls": call.calls, "training": call.training, "ndim": call.ndim, "places": call.places}
    if kind == "heads":
        read = call.inner[0] if call.out is None else len(state.kept(call.out))
        plan = CallPlan(kind, call.axis, read, **own)
        return call.before if len(here) == dense and read == call.inner[0] else plan
    if len(here) == dense and (call.before or not may_narrow(call, state)):
        return call.before
    plan = CallPlan(kind, call.axis, len(here), **own)
    if kind in ("split", "slice"):
        lengths = [int(((here >= start) & (here < stop)).sum()) for start, stop in call.parts]
        first = int((here < call.parts[0][0]).sum())
        return replace(plan, sizes=tuple(lengths) if kind == "split" else (first, lengths[0]))
    if call.grid:
        seen = along(call, here, state)
        if call.out is None:
            return replace(plan, grid=call.grid, expand=seen["expand"])
        return replace(plan, grid=call.grid, width=call.grid[0], select=seen["select"])
    if kind == "view":
        assert call.out is not None
        left = len(state.kept(call.out))
        return replace(
            plan,
            sizes=(call.out_axis, left) if call.needed or call.before else (),
            expect=(call.out_axis, left, *call.inner) if call.inner else (),
            block=call.block,
            dense=call.before.dense if call.before else len(call.out),
        )
    if kind in ("mean", "norm", "layer_norm"):
        earlier = 1.0 if call.before is None else call.before.scale
        return replace(plan, scale=earlier * len(here) / dense)
    return replace(plan, **along(call, here, state))


def may_narrow(call: SizedCall, state: GraphState) -> bool:
    """Is the call written with numbers that may be widths of others, which a cut has changed before its own neurons?"""
    if not call.needed or call.seat[1] not in BY_NUMBERS or not bool(state.removed.any()):
        return False
    return bool(removable_classes(state.graph)[call.source].any())


def along(call: SizedCall, here: Tensor, state: GraphState) -> dict[str, tuple[int, ...]]:
    """What a call along the neuron axis is to see, and what is kept of what it makes."""
    now = torch.full((len(call.source),), -1, device="cpu")
    now[here] = torch.arange(len(here), device="cpu")
    kept = here if call.out is None else state.kept(call.out)
    if call.before is None:
        return {"expand": tuple(now.tolist()), "select": tuple(kept.tolist())}
    expand, select = (
        torch.tensor(at, dtype=torch.long, device="cpu") for at in (call.before.expand, call.before.select)
    )
    return {
        "expand": tuple(torch.where(expand >= 0, now[expand.clamp(min=0)], -1).tolist()),
        "select": tuple(select[kept].tolist()) if len(select) else (),  # the first view of a shuffle keeps all it sees
    }


def needed_alone(graph: NeuronGraph) -> NeuronGraph:
    """The graph without plans for calls that follow a cut by themselves."""
    return with_calls(graph, tuple(call for call in graph.calls if call.needed or call.before or call.inner))


def with_calls(graph: NeuronGraph, calls: tuple[SizedCall, ...]) -> NeuronGraph:
    """The graph with these calls; the order of channels is free where none of them takes parts."""
    graph = replace(graph, calls=calls)
    return replace(graph, streams=free_streams(graph))


def written_into(whole: NeuronGraph, names: Set[str]) -> NeuronGraph | None:
    """The forward may have the numbers of these layers written into it: a graph in which such calls are planned, too.

    None if no call of the user's code that a plan can carry out touches these layers.
    """
    lost = whole.none_removed()
    for layer in whole.layers:
        if layer.name in names:
            lost[layer.classes[layer.removable]] = True
    more = {call.seat for call in whole.calls if not (call.needed or call.before) and bool(lost[call.source].any())}
    calls = tuple(replace(call, needed=True) if call.seat in more else call for call in whole.calls)
    return needed_alone(replace(whole, calls=calls)) if more else None


def without_plans(graph: NeuronGraph, places: Set[tuple[str, ...]]) -> NeuronGraph:
    """The graph without plans for the modules all of whose planned calls stand at these places.

    A module with another one keeps all: what has no plan must not be taken for a planned call at another place.
    """
    planned = {call.seat[0] for call in graph.calls if call.needed and call.places not in places}
    calls = tuple(replace(call, needed=call.needed and call.seat[0] in planned) for call in graph.calls)
    return needed_alone(replace(graph, calls=calls))
