"""Go back to an earlier width of a traced model: removed neurons return, as zeros, until weights are loaded."""

from typing import Any

from demp.errors import UsageError
from demp.graph import GraphState
from demp.surgery.copies import fitting_tensors
from demp.surgery.live import LiveModel
from demp.surgery.record import put_record, record_of, remember
from demp.surgery.refit import raise_if_unsaved, refit_states, refit_tensors
from demp.surgery.shrink import UndoLog, follow, keeps_of


def go_back(live: LiveModel, before: GraphState, after: GraphState, *, example_inputs: Any) -> tuple[str, ...]:
    """From the widths of ``before`` to those of ``after``; what returns is zero, in copies too.

    Residual sums, sizes that modules remember, the record and the optimizers' state follow; the names of the
    optimizers that forgot something. All of it happens, or nothing.

    Raises:
        UsageError: the model is sharded, or has a buffer that is not saved and would have to grow.
        CutError: a copy does not fit.
    """
    if live.context.sharded:
        raise UsageError("neurons cannot return to a model that fully_shard keeps in pieces; build it anew and resume")
    sources = keeps_of(before, after)
    raise_if_unsaved(live.model, sources)
    theirs = [fitting_tensors(copied, live.tensors, sources) for copied in live.copies]
    records = [(module, record_of(module)) for module in live.modules]
    undo_log = UndoLog()
    try:
        with live.context.renewed():
            forgot = refit_states(live.optimizers, live.tensors, sources, undo_log)
            refit_tensors((live.tensors, *theirs), sources, undo_log)
            follow(live, after, sources, undo_log)
            put_record(live.model, live.base)
            if bool(after.removed.any()):
                remember(live.model, after, example_inputs, live.base)
            for module in live.modules:
                put_record(module, record_of(live.model))
        return forgot
    except BaseException:
        undo_log.roll_back()
        for module, record in records:
            put_record(module, record)
        raise
