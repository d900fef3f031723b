"""The cut: one transaction on a live run. It ends proven, or it did not happen."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import CutError, UsageError
from demp.graph import NeuronGraph, trace
from demp.graph.tracer import first_names
from demp.surgery.guards import refuse_open_autocast, refuse_pending_backward, refuse_pending_gradients
from demp.surgery.plan import Limits, Plan, plan_cut
from demp.surgery.record import Record, forget, record_of, remember
from demp.surgery.report import CutReport, layer_cuts
from demp.surgery.shrink import Ledger, keeps_of, resize_attributes, shaped_state
from demp.surgery.verify import (
    difference,
    live_layers,
    masked_outputs_of,
    outputs_of,
    refuse_nan,
    tolerance_for,
)

logger = logging.getLogger("demp")

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
Holder = nn.Module | Mapping[str, Tensor]


def cut(
    model: nn.Module,
    dead: Mapping[str, Any],
    *,
    example_inputs: Any,
    optimizer: Optimizers = None,
    holders: Iterable[Holder] = (),
    limits: Limits | None = None,
    exact: bool = True,
    verify: bool = True,
    tolerance: float | None = None,
    graph: NeuronGraph | None = None,
) -> CutReport:
    """Remove neurons for real from a live model, its optimizers and its copies.

    ``dead`` maps layer names (of ``demp.trace`` on the model as it stands) to indices or boolean masks. Neurons that
    share slices with other layers go only when all of those layers list them. Parameters, buffers, gradients and
    optimizer state shrink in place: objects, hooks, ties, param groups and schedulers stay. A forward on
    ``example_inputs`` before and after must agree within ``tolerance``, or everything is rolled back. With
    ``exact=False`` neurons that still speak may go: the cut is then compared with the model in which they are
    silenced, and the report's ``drift`` says what was lost.

    Raises:
        CutError: refused, or rolled back; the model is as before.
        UsageError: unknown layer or index.
    """
    refuse_open_autocast()
    refuse_pending_gradients(model)
    refuse_pending_backward(model)
    graph = graph or trace(model, example_inputs)
    gone = graph.nothing_gone()
    flags = as_flags(graph, dead)
    plan = plan_cut(graph, gone, flags, limits or Limits())
    return execute(
        model,
        graph,
        plan,
        example_inputs=example_inputs,
        optimizers=as_optimizers(optimizer),
        holders=tuple(holders),
        exact=exact,
        verify=verify,
        tolerance=tolerance,
        base=record_of(model),
    )


def as_flags(graph: NeuronGraph, dead: Mapping[str, Any]) -> dict[str, Tensor]:
    """Indices or masks per layer -> masks per layer."""
    flags = {}
    for name, chosen in dead.items():
        layer = graph.layer(name)
        chosen = torch.as_tensor(chosen, device="cpu")
        if chosen.dtype == torch.bool:
            if chosen.shape != (layer.width,):
                raise UsageError(
                    f"the mask for {name} has shape {tuple(chosen.shape)}; the layer has {layer.width} neurons"
                )
            flags[name] = chosen
            continue
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < layer.width:
            raise UsageError(f"an index for {name} is outside its {layer.width} neurons (0 to {layer.width - 1})")
        flags[name] = torch.zeros(layer.width, dtype=torch.bool)
        flags[name][chosen.long().flatten()] = True
    return flags


def as_optimizers(optimizer: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """None, one or several optimizers as a tuple."""
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)


def execute(
    model: nn.Module,
    graph: NeuronGraph,
    plan: Plan,
    *,
    example_inputs: Any,
    optimizers: tuple[torch.optim.Optimizer, ...] = (),
    holders: tuple[Holder, ...] = (),
    exact: bool = True,
    verify: bool = True,
    tolerance: float | None = None,
    base: Record | None = None,
    step: int | None = None,
    judged: dict[str, int] | None = None,
) -> CutReport:
    """Carry out a plan as a transaction and report it."""
    start = time.perf_counter()
    tensors, _ = first_names(model)
    refuse_changed_model(tensors, graph, plan.before)
    parameters = sum(p.numel() for p in model.parameters())
    gap = drift = None
    surgery = 0.0
    if not plan.empty:
        keeps = keeps_of(graph, plan.before, plan.after)
        entries = [e for optimizer in optimizers for e in shaped_state(optimizer, tensors, keeps)]
        copies = [holder_tensors(holder, tensors, keeps) for holder in holders]
        plain = outputs_of(model, example_inputs) if verify else []
        refuse_nan(plain)
        wanted = (
            plain if exact or not verify else masked_outputs_of(model, graph, plan.before, plan.after, example_inputs)
        )
        old_record = record_of(model)
        ledger = Ledger(keep_undo=verify)
        surgery_start = time.perf_counter()
        try:
            for name, keep in keeps.items():
                for entry in (e for e in entries if e.parameter == name):
                    ledger.replace(entry.state, entry.key, keep)
                ledger.shrink(tensors[name], keep)
                for copy in copies:
                    if name in copy:
                        ledger.shrink(copy[name], keep)
            for module in (model, *(h for h in holders if isinstance(h, nn.Module))):
                resize_attributes(inner(module), graph, keeps, plan.after, ledger)
            surgery = time.perf_counter() - surgery_start
            torch.clear_autocast_cache()
            remember(model, graph, plan.after, example_inputs, base)
            if verify:
                after = outputs_of(model, example_inputs)
                gap, drift = difference(wanted, after), difference(plain, after)
                limit = tolerance_for(plain) if tolerance is None else tolerance
                if not gap <= limit:
                    raise Disagreement(gap, limit)
        except BaseException as error:
            ledger.roll_back()
            forget(model, old_record)
            if isinstance(error, Disagreement):
                raise CutError(explain(model, graph, plan, example_inputs, error)) from None
            raise
    return CutReport(
        step=step,
        removed=graph.neurons(plan.before) - graph.neurons(plan.after),
        layers=layer_cuts(graph, plan.before, plan.after),
        neurons_before=graph.neurons(plan.before),
        neurons_after=graph.neurons(plan.after),
        parameters_before=parameters,
        parameters_after=sum(p.numel() for p in model.parameters()),
        flops_before=graph.flops(plan.before),
        flops_after=graph.flops(plan.after),
        seconds=time.perf_counter() - start,
        surgery_seconds=surgery,
        difference=gap,
        drift=drift,
        held=plan.held,
        hash=plan.hash,
        judged=judged or {},
    )


class Disagreement(Exception):
    """Outputs before and after differ by more than rounding."""

    def __init__(self, gap: float, limit: float) -> None:
        super().__init__(gap, limit)
        self.gap, self.limit = gap, limit


def explain(model: nn.Module, graph: NeuronGraph, plan: Plan, example_inputs: Any, error: Disagreement) -> str:
    """Which layers were not dead, after a roll-back."""
    newly = plan.after & ~plan.before
    planned = {layer.name: newly[layer.classes] for layer in graph.layers if bool(newly[layer.classes].any())}
    alive = live_layers(model, graph, plan.before, planned, example_inputs)
    where = (
        f"neurons of {', '.join(alive)} are not dead on the example inputs"
        if alive
        else f"the neurons of {', '.join(planned)} are dead at every read point, so the graph misread this model"
    )
    return (
        f"rolled back: outputs changed by {error.gap:.1e} of their scale (tolerance {error.limit:.0e}); {where}. "
        "Pass exact=False to remove neurons that still speak"
    )


def refuse_changed_model(tensors: Mapping[str, Tensor], graph: NeuronGraph, gone: Tensor) -> None:
    """The model must have the widths that the graph expects."""
    for name, shape in graph.sizes(gone).items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CutError(
                f"{name} should have shape {shape} but is {found}: the model was changed since it was traced. "
                "Trace it again; nothing was cut"
            )


def inner(module: nn.Module) -> nn.Module:
    """The model inside an averaged copy."""
    return module.module if isinstance(module, torch.optim.swa_utils.AveragedModel) else module


def holder_tensors(holder: Holder, tensors: Mapping[str, Tensor], keeps: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of a copy by the model's names.

    Raises:
        CutError: the copy lacks a tensor or has it in another shape.
    """
    found = first_names(inner(holder))[0] if isinstance(holder, nn.Module) else dict(holder)
    mine = {}
    for name in keeps:
        if name not in found and not isinstance(holder, nn.Module):
            continue  # a dict of averages may hold parameters only
        if name not in found or found[name].shape != tensors[name].shape:
            raise CutError(
                f"the holder {type(holder).__name__} has no {name} of shape {tuple(tensors[name].shape)}; "
                "holders must be copies of the model"
            )
        mine[name] = found[name]
    return mine
