"""Read a model: one forward that follows neurons, the graph out of it, and a rehearsal of a cut."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from demp import shards, wrappers
from demp.errors import TraceError
from demp.graph.assemble import assemble
from demp.graph.attributes import counted
from demp.graph.branches import Escapes, frames_of, freeze_forks
from demp.graph.forward import (
    FORWARD,
    Inputs,
    as_inputs,
    first_names,
    hooks_off,
    module_stack,
    refuse_no_forward,
    run,
    stand_ins,
)
from demp.graph.joins import SumWatch
from demp.graph.neurons import NeuronGraph
from demp.graph.recording import Recording
from demp.graph.rehearsal import HARD_CODED, TRAINING_ONLY, refuse_hard_coded, tensors_in
from demp.graph.tracer import Tracer

logger = logging.getLogger("demp")


def trace(model: nn.Module, example_inputs: Any, *, joins: bool = True) -> NeuronGraph:
    """The neuron graph of ``model``, read from one forward on ``example_inputs``.

    With ``joins`` every block output of a residual stream has its own neurons, and a cut turns the sum into a join of
    two widths; without, a channel of the stream goes only when it is dead at every read of the stream.

    The forward runs on the meta device (no arithmetic, no memory), or eagerly where the model needs values. The
    model's objects, parameters, modes, buffers and attributes are untouched; its forward hooks run with it.

    Raises:
        TraceError: the model does not run on the example inputs.
    """
    model = wrappers.inside(model)
    refuse_no_forward(model)
    with shards.whole(model):
        return traced(model, as_inputs(example_inputs), joins)


def traced(model: nn.Module, inputs: Inputs, joins: bool) -> NeuronGraph:
    """By the first vehicle that works."""
    tensors, aliases = first_names(model)
    failures: list[Exception] = []
    for vehicle in ("meta", "eager"):
        try:
            with torch.inference_mode(False):
                return trace_with(model, tensors, aliases, inputs, vehicle, joins)
        except Exception as error:  # the user's forward may raise anything; the eager attempt's error is reported
            logger.debug("reading the model by a %s forward failed: %s", vehicle, error)
            failures.append(error)
    shapes = [tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    message = str(failures[-1]).strip().split("\n")[0]
    raise TraceError(
        f"{shards.kind_of(model).__name__} does not run on the example inputs (shapes {shapes}): {message}. "
        "Pass example_inputs as a tuple of the arguments that the model's forward takes"
    ) from failures[-1]


def trace_with(
    model: nn.Module, tensors: dict[str, Tensor], aliases: dict[str, str], inputs: Inputs, vehicle: str, joins: bool
) -> NeuronGraph:
    """Trace by one vehicle, then rehearse a small cut to find hard-coded widths."""
    substitutes = stand_ins(tensors, vehicle)
    tracer = Tracer(substitutes)
    ran: Counter[str] = Counter()
    for path, module in model.named_modules():
        attribute, leaf, axis = counted(module) or ("", "", 0)
        weight = f"{path}.{leaf}".lstrip(".")
        if attribute and weight in tensors and tensors[weight].shape[axis] == getattr(module, attribute):
            tracer.attribute(weight, attribute, tracer.recording.axes[weight][axis].ids)
    watch = SumWatch(tracer.modules, tracer.on_sum)
    escapes = (Escapes(tracer),) if vehicle == "eager" else ()  # on meta there are no values
    with module_stack(model, tracer.modules, ran), frames_of(model, tracer):
        out, left = run(model, substitutes, inputs, vehicle, modes=(tracer, watch, *escapes))
    for tree, reason in ((out, "model output"), (left, "kept on a module by the forward")):
        for tensor in tensors_in(tree):
            for axis in tracer.labels(tensor).axes:
                if axis is not None:
                    tracer.elements.freeze(axis.ids, reason)
    freeze_forks(tracer, tensors, ran)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    patched = {name for name, module in model.named_modules() if {"forward", FORWARD} & vars(module).keys()}
    apart = {name for name, calls in ran.items() if calls == 1} - watch.nested - patched  # there no class decides
    owners = apart if joins else set()

    def rehearsed(owners: set[str]) -> tuple[NeuronGraph, bool]:
        couple(tracer.recording, owners)
        whole = assemble(tracer.recording, shapes, aliases, vehicle)
        graph = refuse_hard_coded(
            whole, model, substitutes, lambda new: run(model, new, inputs, vehicle), (out, left), HARD_CODED
        )
        return graph, graph is whole

    graph, clean = rehearsed(owners)
    if not clean and any(not seen.planned for seen in tracer.recording.joins):
        coupled, _ = rehearsed(set())
        graph = max(graph, coupled, key=NeuronGraph.removable)
    if all(name in ran for name, module in model.named_modules() if module._parameters):
        return graph
    return refuse_training_only(graph, model, substitutes, inputs, vehicle)


def couple(recording: Recording, owners: set[str]) -> None:
    """Sums of modules other than ``owners`` bind their two sides; those that a cut has planned stay as they are."""
    apart = []
    for seen in recording.joins:
        if seen.planned or seen.module in owners:
            apart.append(seen)
        else:
            recording.elements.union(seen.stream.ids, seen.branch.ids)
    recording.joins[:] = apart


def refuse_training_only(
    graph: NeuronGraph, model: nn.Module, substitutes: Mapping[str, Tensor], inputs: Inputs, vehicle: str
) -> NeuronGraph:
    """Some modules did not run in evaluation mode (auxiliary heads): rehearse the training forward as well."""
    if vehicle == "eager":  # a training forward may update parameters in place (codebooks)
        substitutes = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in substitutes.items()}

    def forward(tensors: Mapping[str, Tensor]) -> Any:
        with hooks_off(model):
            return run(model, tensors, inputs, vehicle, training=True)

    try:
        reference = forward(substitutes)
    except Exception as error:  # it may need other examples (a batch norm of one position); nothing to compare with
        logger.debug("the training forward does not run on the example inputs: %s", error)
        return graph
    return refuse_hard_coded(graph, model, substitutes, forward, reference, TRAINING_ONLY)
