"""Read a model: one forward that follows neurons, the graph out of it, and a rehearsal of a cut."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from demp.errors import TraceError, UsageError
from demp.graph.assemble import assemble
from demp.graph.attributes import with_head_counts, with_lengths
from demp.graph.call_mode import WrittenViews
from demp.graph.call_plans import needed_alone, without_plans, written_into
from demp.graph.call_rules import bind_calls
from demp.graph.following import Forward, follow, follow_training
from demp.graph.forward import (
    FORWARD,
    Inputs,
    as_inputs,
    first_names,
    hooks_off,
    raise_if_no_forward,
    stand_ins,
)
from demp.graph.neurons import NeuronGraph
from demp.graph.parts import HEADS
from demp.graph.recording import Offer, Outputs, Recording
from demp.graph.rehearsal import (
    HARD_CODED,
    HARD_CODED_IN_TRAINING,
    as_refused,
    coupled_groups,
    raise_if_hard_coded,
    survives,
)
from demp.graph.scripted import raise_if_unreadable
from demp.graph.training import learn, learn_calls
from demp.parallel import user_class, user_module, whole_parameters

logger = logging.getLogger("demp")
Read = TypeVar("Read")
REMEDY = "Pass example_inputs as a tuple of the arguments that the model's forward takes"


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    joins: bool = True,
    streams: bool = False,
    linear: bool = False,
    outputs: Outputs = None,
) -> NeuronGraph:
    """Trace ``model`` in one forward on ``example_inputs``, and return the graph of its neurons.

    With ``joins`` every block output of a residual stream has its own neurons, and after a cut the sum
    adds two widths; without, a channel of the stream goes only when it is dead at every read of the stream.

    With ``streams`` the channels of streams that RMS norms and layer norms read (the embedding width of a transformer)
    may go, too: those that every writer leaves at zero, and of which layer norms make zeros again (scale and shift are
    zero). It needs ``joins``, since a cut then plans how the norms run.

    With ``linear`` neurons that other weights read before any activation (the bottlenecks of MobileNetV2) may go, too:
    those that are zero, because all that makes them is, or that are constants.

    ``outputs`` is a function of the model's output that returns what counts of it: neurons that only the rest shows
    (the last hidden states of an encoder, beside scores) may go, and the rest becomes narrower. Names of modules, which
    `demp.cut` takes, change nothing here.

    The forward runs on the meta device (no arithmetic, no memory), or eagerly where the model needs values. The
    model's objects, parameters, modes, buffers and attributes are untouched; its forward hooks run with it.

    Raises:
        TraceError: the model does not run on the example inputs.
    """
    model = user_module(model)
    raise_if_no_forward(model)
    raise_if_unreadable(model)
    with whole_parameters(model):
        read = partial(trace_with, offer=Offer(joins, streams, linear, outputs if callable(outputs) else None))
        return by_any_vehicle(model, as_inputs(example_inputs), read)


def by_any_vehicle(model: nn.Module, inputs: Inputs, read: Callable[..., Read]) -> Read:
    """``read(model, tensors, aliases, inputs, vehicle)`` by the first vehicle that works."""
    tensors, aliases = first_names(model)
    failures: list[Exception] = []
    for vehicle in ("meta", "eager"):
        try:
            with torch.inference_mode(False):
                return read(model, tensors, aliases, inputs, vehicle)
        except Exception as error:  # the user's forward may raise anything; the eager attempt's error is reported
            logger.debug("reading the model by a %s forward failed: %s", vehicle, error)
            failures.append(error)
    if isinstance(failures[-1], UsageError):
        raise failures[-1]
    shapes = [tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    message = str(failures[-1]).strip().split("\n")[0].rstrip(".")
    raise TraceError(
        f"{user_class(model).__name__} does not run on the example inputs (shapes {shapes}): {message}. {REMEDY}"
    ) from failures[-1]


def planned_sums(
    model: nn.Module, tensors: dict[str, Tensor], aliases: dict[str, str], inputs: Inputs, vehicle: str
) -> Recording:
    """What one forward of a cut model showed; of its sums only those that a cut has planned are left apart."""
    recording = follow(model, stand_ins(tensors, vehicle), inputs, vehicle).trace.recording
    couple(recording, set())
    bind_calls(recording, None)
    return recording


def trace_with(
    model: nn.Module,
    tensors: dict[str, Tensor],
    aliases: dict[str, str],
    inputs: Inputs,
    vehicle: str,
    *,
    offer: Offer,
) -> NeuronGraph:
    """Trace by one vehicle, then rehearse a small cut to find hard-coded widths."""
    seen = follow(model, stand_ins(tensors, vehicle), inputs, vehicle, offer=offer)
    recording = seen.trace.recording
    seen.freeze_outputs(tensors)
    trainings = follow_training(model, tensors, inputs, seen)
    owners, callers, differing = planned_modules(model, seen, trainings, tensors)
    bind_calls(recording, callers)
    rehearsal = Rehearsal(model, inputs, seen)

    def rehearsed(owners: set[str]) -> tuple[NeuronGraph, bool]:
        couple(recording, owners)
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        return rehearsal.best(assemble(recording, shapes, aliases, vehicle))

    graph, clean = rehearsed(owners)
    if not clean and any(not join.planned for join in recording.joins):
        graph = max(graph, rehearsed(set())[0], key=NeuronGraph.removable)
    notes = tuple(
        f"{name or 'the model'}: its residual sum binds both sides, because {why}" for name, why in differing.items()
    )
    graph = replace(graph, notes=notes)
    for training in trainings:
        graph = raise_if_only_in_training(graph, model, training, inputs)
    return graph


def planned_modules(
    model: nn.Module, seen: Forward, trainings: list[Forward], tensors: Mapping[str, Tensor]
) -> tuple[set[str], set[str], dict[str, str]]:
    """Modules whose sums a cut may plan, those whose calls it may plan, and whose sums differ in training, with why.

    What a training forward unites, freezes and returns holds for the evaluation forward ``seen`` from here on.
    """
    recording = seen.trace.recording
    patched = {name for name, module in model.named_modules() if {"forward", FORWARD} & vars(module).keys()}
    once = {name for name, calls in seen.ran.items() if calls == 1} - patched
    joins = recording.offer.joins
    owners = once - seen.nested if joins else set()  # inside a nested one no class decides
    callers = once | recording.repeated - patched if joins else set()
    differing: dict[str, str] = {}
    if trainings:
        callers = {name for name in callers if any(training.ran[name] for training in trainings)}
    for training in trainings:
        training.freeze_outputs(tensors, known=seen.trace.frames.touched)
        callers = learn_calls(seen, training, callers)
        differing |= learn(seen, training, owners)
        owners -= differing.keys()
    return owners, callers, differing


@dataclass(frozen=True)
class Rehearsal:
    """Small cuts of what one forward showed, on its stand-in tensors: which ways to carry a cut out run."""

    model: nn.Module
    inputs: Inputs
    seen: Forward

    def best(self, every: NeuronGraph) -> tuple[NeuronGraph, bool]:
        """Of a graph with all calls that may be planned: the one with most to offer, and whether it runs as read."""
        heads = {layer.name for layer in every.layers if layer.activation == HEADS}
        every = with_lengths(every, self.model) if heads else every
        for graph in (needed_alone(every), written_into(every, heads)) if heads else ():  # most models of attention
            whole = None if graph is None else self._whole(graph)
            if whole is not None:
                return whole, True
        first, counting = self._settled(every), with_head_counts(every, self.model)
        if first[1] or counting is None:
            return first
        return max(first, self._settled(counting), key=lambda found: found[0].removable())

    def _settled(self, every: NeuronGraph) -> tuple[NeuronGraph, bool]:
        """Without planned calls where that runs, else with those that refused layers need."""
        whole = needed_alone(every)
        graph = self._refused(whole)
        planned = None if graph is whole else written_into(every, graph.refused_layers())
        if planned is not None:
            planned = self._whole(planned) or planned
            last = self._refused(planned)
            graph = max(graph, last, key=NeuronGraph.removable)
            return as_refused(graph, last), graph is planned
        return graph, graph is whole

    def _whole(self, graph: NeuronGraph) -> NeuronGraph | None:
        """None if the graph does not run; without plans where all views follow a cut as they are written, if it may."""
        with WrittenViews() as views:
            if not self._survives(graph):
                return None
        following = views.following()
        spared = without_plans(graph, following)
        return spared if following and self._survives(spared) else graph

    def _refused(self, graph: NeuronGraph) -> NeuronGraph:
        reference = (self.seen.out, self.seen.left)
        return raise_if_hard_coded(graph, self.model, self.seen.substitutes, self._forward, reference, HARD_CODED)

    def _survives(self, graph: NeuronGraph) -> bool:
        reference = (self.seen.out, self.seen.left)
        groups = coupled_groups(graph)
        return survives(graph, self.model, self.seen.substitutes, self._forward, reference, groups)

    def _forward(self, tensors: Mapping[str, Tensor]) -> Any:
        return self.seen.again(self.model, self.inputs, tensors, training=False)


def couple(recording: Recording, owners: set[str]) -> None:
    """Sums of modules other than ``owners`` bind their two sides; those that a cut has planned stay as they are."""
    apart = []
    for seen in recording.joins:
        if seen.planned or seen.module in owners:
            apart.append(seen)
        else:
            recording.elements.union(seen.stream.ids, seen.branch.ids)
    recording.joins[:] = apart


def raise_if_only_in_training(graph: NeuronGraph, model: nn.Module, training: Forward, inputs: Inputs) -> NeuronGraph:
    """Rehearse the training forward as well."""

    def forward(tensors: Mapping[str, Tensor]) -> Any:
        with hooks_off(model):
            return training.again(model, inputs, tensors, training=True)

    reference = (training.out, training.left)
    return raise_if_hard_coded(graph, model, training.substitutes, forward, reference, HARD_CODED_IN_TRAINING)
