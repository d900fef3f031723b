"""The cut as one transaction on a live run: it ends proven, or it did not happen."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from demp.errors import CutError
from demp.graph import GraphState
from demp.parallel import Context
from demp.surgery.constants import Settled, settle
from demp.surgery.copies import fitting_tensors, tensors_of
from demp.surgery.evidence import CutOutcome, before_cut, proven
from demp.surgery.guards import raise_if_unshrinkable
from demp.surgery.live import LiveModel
from demp.surgery.plan import Plan
from demp.surgery.proving import Disagreement, VerifyOptions, explain
from demp.surgery.record import put_record, record_of, remember
from demp.surgery.report import CutReport, depths, layer_cuts
from demp.surgery.shrink import Keeps, UndoLog, follow, keeps_of
from demp.surgery.state import StateEntry, state_entries


def execute(
    live: LiveModel,
    plan: Plan,
    options: VerifyOptions,
    *,
    step: int | None = None,
    judged: Mapping[str, int] | None = None,
) -> tuple[CutReport, Plan]:
    """Carry out a plan as a transaction and report it; the ranks of the model's group do so together, or not at all.

    With the report the plan that was carried out: where constants move, some neurons may have to stay.

    Raises:
        CutError: refused, or rolled back; the model is as before, on every rank.
    """
    began = time.perf_counter()
    raise_if_other_plans(plan, live.context)
    with live.context.together():
        raise_if_changed_model(live.tensors, plan.before)
    entries, outcome = live.entries, CutOutcome(plan)
    if not plan.empty:
        with live.context.renewed():
            outcome = operate(live, plan, options)
    report = report_of(live, outcome, options, began, entries)
    return replace(report, step=step, judged=dict(judged or {})), outcome.plan


def report_of(live: LiveModel, outcome: CutOutcome, options: VerifyOptions, began: float, entries: int) -> CutReport:
    """The report on a cut that ``began`` then, when the parameters had so many ``entries``.

    Seconds, difference and drift are those of the rank where they are largest.
    """
    plan, before, after = outcome.plan, outcome.plan.before, outcome.plan.after
    removed = before.neurons - after.neurons
    dead, saturated = (removed, 0) if options.exact or not removed else outcome.apart or (None, None)
    seconds, surgery, gap, drift = live.context.highest(
        (time.perf_counter() - began, outcome.seconds, outcome.difference, outcome.drift)
    )
    return CutReport(
        step=None,
        removed=removed,
        layers=layer_cuts(before, after),
        neurons_before=before.neurons,
        neurons_after=after.neurons,
        parameters_before=entries,
        parameters_after=live.entries,
        flops_before=before.flops(),
        flops_after=after.flops(),
        seconds=seconds or 0.0,
        surgery_seconds=surgery or 0.0,
        difference=gap,
        drift=drift,
        held=plan.held,
        hash=plan.hash,
        notes=outcome.notes,
        depths=depths(after, {name for name, _ in live.model.named_parameters()}),
        dead=dead,
        saturated=saturated,
        copies=outcome.copies,
    )


def raise_if_other_plans(plan: Plan, context: Context) -> None:
    """Every rank must be about to make the same cut.

    Raises:
        CutError: the ranks have different plans.
    """
    remedy = "nothing was cut on any rank; the ranks must look with the same method and settings"
    context.raise_if_disagreement("planned another cut", plan.hash, remedy=remedy)


def operate(live: LiveModel, plan: Plan, options: VerifyOptions) -> CutOutcome:
    """Settle what becomes of constants, then check everything, shrink, prove; whatever goes wrong is rolled back.

    Raises:
        CutError: refused, or rolled back.
    """
    if options.constants is None:
        return apply_plan(live, plan, options, None)
    settled = settle(live, plan, options.constants, options.example_inputs, options.outputs)
    raise_if_other_plans(settled.plan, live.context)
    if settled.plan.empty:
        return CutOutcome(settled.plan, notes=settled.notes, apart=(0, 0))
    try:
        return apply_plan(live, settled.plan, options, settled)
    except Disagreement as error:
        if not settled.moves.shifts:
            raise CutError(explain(live, settled.plan, options, error)) from None
        why = f"the model takes their constants otherwise than the graph sees (outputs changed by {error.gap:.1e})"
        stay = dict.fromkeys(settled.moves.saturated.nonzero().flatten().tolist(), why)
        return operate(live, plan.without(stay), options)


def apply_plan(live: LiveModel, plan: Plan, options: VerifyOptions, settled: Settled | None) -> CutOutcome:
    """Check everything, shrink, prove; whatever goes wrong, on whichever rank, is rolled back.

    Raises:
        CutError: some of it cannot shrink, or the proof failed.
        Disagreement: outputs differ after a cut in which constants moved.
    """
    with live.context.together():
        change = checked_change(live, plan)
    with live.context.whole(*live.modules), live.context.together():
        before = before_cut(live, plan, options, settled)
    records = [(module, record_of(module)) for module in live.modules]
    undo_log = UndoLog(keep_undo=options.verify)
    start = time.perf_counter()
    try:
        with live.context.together():
            if settled is not None:
                add_constants(settled, live, undo_log)
            shrink_all(change, undo_log)
            follow(live, plan.after, change.keeps, undo_log)
            seconds = time.perf_counter() - start
            remember(live.model, plan.after, options.example_inputs, live.base)
            for module in live.modules:  # a copy can be saved too
                put_record(module, record_of(live.model))
        outcome = proven(live, before, options, settled, CutOutcome(plan, seconds))
        return replace(outcome, notes=change.notes + outcome.notes)
    except BaseException as error:
        undo_log.roll_back()
        for module, record in records:
            put_record(module, record)
        if isinstance(error, Disagreement) and settled is None:
            raise CutError(explain(live, plan, options, error)) from None
        raise


@dataclass(frozen=True)
class Change:
    """What shrinks in a cut: of every tensor what stays, and the optimizers' state that belongs to it."""

    keeps: Keeps
    models: tuple[dict[str, Tensor], ...]
    """Tensors of the model and of its copies, by the model's names."""
    states: list[StateEntry]

    @property
    def notes(self) -> tuple[str, ...]:
        """The report's notes on the optimizers' state."""
        return tuple(dict.fromkeys(entry.note for entry in self.states if entry.note))


def checked_change(live: LiveModel, plan: Plan) -> Change:
    """All that will shrink.

    Raises:
        CutError: some of it cannot.
    """
    keeps = keeps_of(plan.before, plan.after)
    states = [entry for optimizer in live.optimizers for entry in state_entries(optimizer, live.tensors, keeps)]
    models = (live.tensors, *(fitting_tensors(copied, live.tensors, keeps) for copied in live.copies))
    for tensors in models:
        raise_if_unshrinkable(tensors, keeps)
    return Change(keeps, models, states)


@torch.no_grad()
def add_constants(settled: Settled, live: LiveModel, undo_log: UndoLog) -> None:
    """Give tensors what the constants of neurons that are removed are worth; copies gain the same amounts."""
    models = [live.tensors, *(tensors_of(copied.content) for copied in live.copies)]
    for shift in settled.moves.shifts:
        own = {id(tensors[shift.tensor]): tensors[shift.tensor] for tensors in models if shift.tensor in tensors}
        for tensor in own.values():
            if tensor.is_floating_point():
                undo_log.add(tensor, shift.values.to(tensor.device))


def shrink_all(change: Change, undo_log: UndoLog) -> None:
    """Shrink every tensor with its optimizer state, one after the other."""
    states: dict[str, list[StateEntry]] = {}
    for entry in change.states:
        states.setdefault(entry.parameter, []).append(entry)
    for name, keep in change.keeps.items():
        for entry in states.get(name, []):
            undo_log.entry(entry.place, entry.key, entry.shrink(entry.place[entry.key]))
        own = {id(tensors[name]): tensors[name] for tensors in change.models if name in tensors}  # some may be shared
        for tensor in own.values():
            undo_log.shrink(tensor, keep)


def raise_if_changed_model(tensors: Mapping[str, Tensor], state: GraphState) -> None:
    """The model must have the widths of the state.

    Raises:
        CutError: a tensor has another shape, or is missing.
    """
    for name, shape in state.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CutError(
                f"{name} should have shape {shape} but is {found}: the model was changed since it was traced. "
                "Trace it again; nothing was cut"
            )
