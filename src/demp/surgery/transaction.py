"""The cut as one transaction on a live run: it ends proven, or it did not happen."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from demp import ranks, shards
from demp.compiled import forget as forget_compiled_code
from demp.errors import CutError
from demp.graph import NeuronGraph
from demp.graph.call_plans import plan_calls
from demp.graph.forward import first_names
from demp.surgery.compared import Outputs
from demp.surgery.constants import ConstantRules, Settled, counts, masked_weights, settle
from demp.surgery.copies import Copy, fitting_tensors, tensors_of
from demp.surgery.copy_proof import notes_on, prove_copies, refer_copies, worst
from demp.surgery.guards import refuse_unshrinkable
from demp.surgery.plan import Plan
from demp.surgery.proving import Disagreement, Terms, explain, prove, refer, refuse_difference
from demp.surgery.record import Record, put_record, record_of, remember
from demp.surgery.report import CutReport, depths, layer_cuts
from demp.surgery.shrink import Keeps, Ledger, keeps_of, resize_attributes
from demp.surgery.state import StateEntry, state_entries
from demp.surgery.training_proof import prove_training, refer_training
from demp.wrappers import Wrappers, renewed


def execute(
    model: nn.Module,
    graph: NeuronGraph,
    plan: Plan,
    *,
    example_inputs: Any,
    optimizers: tuple[torch.optim.Optimizer, ...] = (),
    copies: tuple[Copy, ...] = (),
    exact: bool = True,
    verify: bool = True,
    tolerance: float | None = None,
    constants: ConstantRules | None = None,
    base: Record | None = None,
    step: int | None = None,
    judged: dict[str, int] | None = None,
    wrappers: Wrappers = (),
    group: ranks.Group = None,
    outputs: Outputs = None,
) -> tuple[CutReport, Plan]:
    """Carry out a plan as a transaction and report it; the ranks of ``group`` do so together, or not at all.

    With the report the plan that was carried out: with ``constants`` some neurons may have to stay.
    """
    start = time.perf_counter()
    refuse_other_plans(plan, group)
    with ranks.together(group):
        refuse_changed_model(first_names(model)[0], graph, plan.before)
    parameters = sum(p.numel() for p in model.parameters())
    outcome = Outcome(plan)
    if not plan.empty:
        terms = Terms(example_inputs, exact, verify, tolerance, None if exact else constants, outputs)
        with renewed(wrappers):
            outcome = operate(model, graph, plan, terms, optimizers, copies, base, group)
    plan = outcome.plan
    before, after = graph.at(plan.before), graph.at(plan.after)
    removed = before.neurons - after.neurons
    dead, saturated = (removed, 0) if exact or not removed else outcome.apart or (None, None)
    seconds, surgery, gap, drift = ranks.highest(
        (time.perf_counter() - start, outcome.seconds, outcome.difference, outcome.drift), group
    )
    report = CutReport(
        step=step,
        removed=removed,
        layers=layer_cuts(graph, plan.before, plan.after),
        neurons_before=before.neurons,
        neurons_after=after.neurons,
        parameters_before=parameters,
        parameters_after=sum(p.numel() for p in model.parameters()),
        flops_before=before.flops(),
        flops_after=after.flops(),
        seconds=seconds or 0.0,
        surgery_seconds=surgery or 0.0,
        difference=gap,
        drift=drift,
        held=plan.held,
        hash=plan.hash,
        judged=judged or {},
        notes=outcome.notes,
        depths=depths(graph, plan.after, {name for name, _ in model.named_parameters()}),
        dead=dead,
        saturated=saturated,
        copies=outcome.copies,
    )
    return report, plan


def refuse_other_plans(plan: Plan, group: ranks.Group) -> None:
    """Every rank must be about to make the same cut."""
    remedy = "nothing was cut on any rank; the ranks must judge with the same method and settings"
    ranks.refuse_disagreement("planned another cut", plan.hash, group, remedy=remedy)


@dataclass(frozen=True)
class Outcome:
    """What came out of an operation."""

    plan: Plan
    seconds: float = 0.0
    difference: float | None = None
    drift: float | None = None
    notes: tuple[str, ...] = ()
    apart: tuple[int, int] | None = None
    """Neurons that went as zeros and as other constants, where that was looked at."""
    copies: dict[str, float | None] = field(default_factory=dict)
    """Copy -> by how much its outputs changed."""


def operate(
    model: nn.Module,
    graph: NeuronGraph,
    plan: Plan,
    terms: Terms,
    optimizers: tuple[torch.optim.Optimizer, ...],
    copies: tuple[Copy, ...],
    base: Record | None,
    group: ranks.Group = None,
) -> Outcome:
    """Settle what becomes of constants, then check everything, shrink, prove; whatever goes wrong is rolled back."""
    if terms.constants is None:
        return carry_out(model, graph, plan, terms, None, optimizers, copies, base, group)
    masked = masked_weights(copied.holder for copied in copies)
    rules, inputs = terms.constants, terms.example_inputs
    settled = settle(model, graph, plan, rules, inputs, masked=masked, outputs=terms.outputs, group=group)
    refuse_other_plans(settled.plan, group)
    if settled.plan.empty:
        return Outcome(settled.plan, notes=settled.notes, apart=(0, 0))
    try:
        return carry_out(model, graph, settled.plan, terms, settled, optimizers, copies, base, group)
    except Disagreement as error:
        if not settled.moves.shifts:
            raise CutError(explain(model, graph, settled.plan, terms.example_inputs, error, group)) from None
        why = f"the model takes their constants otherwise than the graph sees (outputs changed by {error.gap:.1e})"
        stay = dict.fromkeys(settled.moves.saturated.nonzero().flatten().tolist(), why)
        return operate(model, graph, plan.without(graph, stay), terms, optimizers, copies, base, group)


def carry_out(
    model: nn.Module,
    graph: NeuronGraph,
    plan: Plan,
    terms: Terms,
    settled: Settled | None,
    optimizers: tuple[torch.optim.Optimizer, ...],
    copies: tuple[Copy, ...],
    base: Record | None,
    group: ranks.Group = None,
) -> Outcome:
    """Check everything, shrink, prove; whatever goes wrong, on whichever rank, is rolled back."""
    with ranks.together(group):
        tensors, _ = first_names(model)
        keeps = keeps_of(graph, plan.before, plan.after)
        entries = [e for optimizer in optimizers for e in state_entries(optimizer, tensors, keeps)]
        said = tuple(dict.fromkeys(entry.note for entry in entries if entry.note))
        theirs = [fitting_tensors(copied, tensors, keeps) for copied in copies]
        for each in (tensors, *theirs):
            refuse_unshrinkable(each, keeps)
        modules = [model, *(copied.module for copied in copies if copied.module is not None)]
    with whole(modules), ranks.together(group):
        reference = refer(model, graph, plan, terms, settled)
        in_training = None if settled is not None else refer_training(model, graph, plan, terms, group)
        others = refer_copies(copies, model, graph, plan, terms, constants=settled is not None)
    old_records = [(module, record_of(module)) for module in modules]
    ledger = Ledger(keep_undo=terms.verify)
    start = time.perf_counter()
    try:
        with ranks.together(group):
            if settled is not None:
                add_constants(settled, [tensors, *(tensors_of(copied.holder) for copied in copies)], ledger)
            shrink_all(keeps, [tensors, *theirs], entries, ledger)
            ledger.renew(model)
            after = graph.at(plan.after)
            plans, calls = after.residual_adds, plan_calls(after)
            for module in modules:
                resize_attributes(module, graph, keeps, plan.after, ledger)
                for path, sums in plans.items():
                    ledger.joins(module.get_submodule(path), sums)
                for path, planned in calls.items():
                    ledger.calls(module.get_submodule(path), planned)
            torch.clear_autocast_cache()
            forget_compiled_code()
            seconds = time.perf_counter() - start
            remember(model, graph, plan.after, terms.example_inputs, base)
            for module in modules:  # a copy can be saved too
                put_record(module, record_of(model))
        with whole(modules), ranks.together(group):
            found = None if reference is None else prove(model, reference, terms)
            drifts = prove_copies(others, terms)
        said += notes_on(others) + (() if settled is None else settled.notes)
        apart = None if settled is None else counts(graph, settled)
        if reference is None or found is None:
            return Outcome(plan, seconds, notes=said, apart=apart)
        refuse_difference(found, group)
        prove_training(model, in_training, terms)
        return Outcome(plan, seconds, found.gap, found.drift, said, apart, worst(drifts, group))
    except BaseException as error:
        ledger.roll_back()
        for module, record in old_records:
            put_record(module, record)
        if isinstance(error, Disagreement) and settled is None:
            raise CutError(explain(model, graph, plan, terms.example_inputs, error, group)) from None
        raise


@contextmanager
def whole(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, no parameter of these is in pieces."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(shards.whole(module))
        yield


@torch.no_grad()
def add_constants(settled: Settled, models: list[dict[str, Tensor]], ledger: Ledger) -> None:
    """Give tensors what the constants of neurons that go are worth; copies gain the same amounts."""
    for shift in settled.moves.shifts:
        own = {id(tensors[shift.tensor]): tensors[shift.tensor] for tensors in models if shift.tensor in tensors}
        for tensor in own.values():
            if tensor.is_floating_point():
                ledger.add(tensor, shift.values.to(tensor.device))


def shrink_all(keeps: Keeps, models: list[dict[str, Tensor]], entries: list[StateEntry], ledger: Ledger) -> None:
    """Shrink every tensor with its optimizer state, one after the other."""
    states: dict[str, list[StateEntry]] = {}
    for entry in entries:
        states.setdefault(entry.parameter, []).append(entry)
    for name, keep in keeps.items():
        for entry in states.get(name, []):
            ledger.entry(entry.place, entry.key, entry.shrink(entry.place[entry.key]))
        own = {id(tensors[name]): tensors[name] for tensors in models if name in tensors}  # a copy may share some
        for tensor in own.values():
            ledger.shrink(tensor, keep)


def refuse_changed_model(tensors: Mapping[str, Tensor], graph: NeuronGraph, gone: Tensor) -> None:
    """The model must have the widths that the graph expects."""
    for name, shape in graph.at(gone).shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CutError(
                f"{name} should have shape {shape} but is {found}: the model was changed since it was traced. "
                "Trace it again; nothing was cut"
            )
