"""The forwards that show where a constant could go: one in evaluation mode and, where sums read, one in training."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from demp.activity.observe import call_reads, named_tensors, quiet
from demp.activity.tally import Key
from demp.graph import GraphState, NeuronGraph
from demp.graph.forward import as_inputs, module_stack
from demp.graph.inputs import copied
from demp.graph.joins import SumWatch
from demp.graph.lookup import Seats
from demp.surgery.compared import Outputs, compared
from demp.surgery.readers import Readers, ReaderWatch, Use
from demp.surgery.training_mode import training


def look(model: nn.Module, state: GraphState, example_inputs: Any, outputs: Outputs = None) -> Readers:
    """Run the model once in evaluation mode and look at everything that reads neurons.

    What a residual sum adds takes up a constant only if it does so in training, too: not where a branch is dropped.
    """
    args, kwargs = copied(as_inputs(example_inputs))
    with quiet(model):
        watch = ReaderWatch(state, named_tensors(model))
        with watching(model, state.graph, watch):
            seen = compared(model, args, kwargs, outputs)
    watch._now = ("", None, (), {})
    if any(read.seat is not None for read in state.graph.reads):
        raise_if_dropped_branch(watch.uses, in_training(model, state, example_inputs, outputs))
    return Readers(watch.uses, seen, watch.touched, Counter(watch._uses), watch.tensors)


def in_training(model: nn.Module, state: GraphState, example_inputs: Any, outputs: Outputs) -> dict[Key, list[Use]]:
    """The consumers in a training forward, dropout included; empty if it does not run."""
    args, kwargs = copied(as_inputs(example_inputs))
    watch = ReaderWatch(state, named_tensors(model))
    try:
        with training(model, dropout=True), watching(model, state.graph, watch):
            compared(model, args, kwargs, outputs)
    except Exception:  # it may need targets: then nothing of it is known, as in the proof
        return {}
    watch._now = ("", None, (), {})
    return watch.uses


def raise_if_dropped_branch(uses: dict[Key, list[Use]], others: dict[Key, list[Use]]) -> None:
    """The other side of a sum that training makes otherwise is no home."""
    for key, some in uses.items():
        for use, other in zip(some, others.get(key, ()), strict=False):
            if use.read.seat is not None and use.made is not None:
                same = other.made is not None and other.made.added == use.made.added
                use.made = use.made if same else None


@contextmanager
def watching(model: nn.Module, graph: NeuronGraph, watch: ReaderWatch) -> Iterator[None]:
    """A forward inside is watched, residual sums included."""
    path: list[str] = []
    called = any(read.call is not None for read in graph.reads)
    if not graph.joins and not called:
        with watch:
            yield
        return
    on_call = call_reads(graph, watch.on_call_read) if called else None
    seats = Seats(graph.reads, ran := Counter[str]())
    with module_stack(model, path, ran), SumWatch(path, watch.on_sum, on_call, seats=seats), watch:
        yield
