"""Go back to an earlier width of a traced model: neurons that are gone return, as zeros, until weights are loaded."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from demp import shards
from demp.compiled import forget as forget_compiled_code
from demp.errors import UsageError
from demp.graph import NeuronGraph
from demp.graph.call_plans import plan_calls
from demp.graph.calls import model_calls
from demp.graph.forward import first_names
from demp.surgery.copies import Copy, fitting_tensors
from demp.surgery.record import Record, put_record, record_of, remember
from demp.surgery.refit import refit_states, refit_tensors, refuse_unsaved
from demp.surgery.shrink import Ledger, keeps_of, resize_attributes
from demp.wrappers import Wrappers, renewed


def go_back(
    model: nn.Module,
    graph: NeuronGraph,
    before: Tensor,
    after: Tensor,
    *,
    example_inputs: Any,
    optimizers: tuple[Optimizer, ...] = (),
    copies: tuple[Copy, ...] = (),
    base: Record | None = None,
    wrappers: Wrappers = (),
) -> tuple[str, ...]:
    """From the widths that ``before`` leaves to those that ``after`` does; what returns is zero, in copies too.

    Joins, sizes that modules remember, the record and the optimizers' state follow; the names of the optimizers that
    forgot something. All of it happens, or nothing.

    Raises:
        UsageError: the model is sharded, or has a buffer that is not saved and would have to grow.
        CutError: a copy does not fit.
    """
    if shards.parts(model):
        raise UsageError("neurons cannot return to a model that fully_shard keeps in pieces; build it anew and resume")
    tensors, sources = first_names(model)[0], keeps_of(graph, before, after)
    refuse_unsaved(model, sources)
    theirs = [fitting_tensors(copied, tensors, sources) for copied in copies]
    modules = [model, *(copied.module for copied in copies if copied.module is not None)]
    records = [(module, record_of(module)) for module in modules]
    ledger = Ledger()
    try:
        with renewed(wrappers):
            forgot = refit_states(optimizers, tensors, sources, ledger)
            refit_tensors((tensors, *theirs), sources, ledger)
            plans, calls = graph.at(after).residual_adds, plan_calls(graph.at(after))
            for module in modules:
                resize_attributes(module, graph, {name: {} for name in sources}, after, ledger)
                for path, sums in plans.items():
                    ledger.joins(module.get_submodule(path), sums)
                for path in {*model_calls(module), *calls}:
                    ledger.calls(module.get_submodule(path), calls.get(path, {}))
            forget_compiled_code()
            put_record(model, base)
            if bool(after.any()):
                remember(model, graph, after, example_inputs, base)
            for module in modules:
                put_record(module, record_of(model))
        return forgot
    except BaseException:
        ledger.roll_back()
        for module, record in records:
            put_record(module, record)
        raise
