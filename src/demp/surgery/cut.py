"""``demp.cut``: remove neurons from a live model by hand."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.graph import NeuronGraph, trace
from demp.parallel import context_of, raise_if_unfit_sharding, reshard, user_module
from demp.surgery.compared import Outputs, raise_if_unknown_outputs
from demp.surgery.constants import ConstantRules
from demp.surgery.copies import as_copies
from demp.surgery.earlier import names_of_today
from demp.surgery.guards import outside_autocast, raise_if_pending_backward, raise_if_pending_gradients
from demp.surgery.live import LiveModel
from demp.surgery.optimizers import Optimizers, as_optimizers
from demp.surgery.plan import Limits, plan_cut
from demp.surgery.proving import VerifyOptions
from demp.surgery.record import record_of
from demp.surgery.report import CutReport
from demp.surgery.transaction import execute


@outside_autocast()
@names_of_today
def cut(
    model: nn.Module,
    dead: Mapping[str, Any],
    *,
    example_inputs: Any,
    optimizer: Optimizers = None,
    copies: Iterable[Any] = (),
    limits: Limits | None = None,
    exact: bool = True,
    verify: bool = True,
    tolerance: float | None = None,
    constants: bool = False,
    max_drift: float | None = None,
    fold: bool = False,
    streams: bool = False,
    linear: bool = False,
    graph: NeuronGraph | None = None,
    outputs: Outputs = None,
) -> CutReport:
    """Remove neurons for real from a live model, its optimizers and its copies.

    ``dead`` maps layer names (of ``demp.trace`` on the model as it stands) to indices or boolean masks. Neurons that
    share slices with other layers go only when all of those layers list them. Parameters, buffers, gradients and
    optimizer state shrink in place: objects, hooks, ties, param groups and schedulers stay. A forward on
    ``example_inputs`` before and after must agree within ``tolerance``, or everything is rolled back. With
    ``exact=False`` neurons that are not dead may go: the cut is then compared with the model in which they are
    zeroed, and the report's ``drift`` says what was lost.

    With ``constants=True`` neurons leave with their constants: the mean of each on the example inputs goes into the
    biases or running means behind its readers, or is carried by one of them that stays; a neuron whose constant finds
    no place stays, and the report says why. The cut is compared with the model in which each of them is replaced by
    its constant wherever it is read; with ``max_drift`` the outputs change by no more than that share of their largest
    value, and neurons wait where they would. (``fold=True`` with ``exact=False`` is an older name of it.)

    With ``streams=True`` channels of streams between norms (layers of kind ``stream``) may go, too: see
    `demp.trace`. With ``linear=True`` neurons may that are read before any activation (layers of kind ``linear``). A
    ``graph`` that is given has them or not.

    ``copies`` are copies of the model that are cut with it: modules, wrappers around one (AveragedModel, EMA classes),
    dicts of tensors by the model's names, lists of tensors in the order of its parameters. The cut of those that can
    run is proven too, and ``copies`` of the report says by how much the outputs of each changed.

    ``outputs`` is what is compared where the model's own outputs do not compare (boxes after a top-k or a suppression,
    which rounding reorders): names of modules, whose outputs are compared instead, or a function of the model's output
    that returns tensors. What the function leaves out may become narrower: see `demp.trace`.

    Around the model there may be a ``DistributedDataParallel``, also as the argument: its reducer is made anew. Among
    several ranks all must call this with the same neurons.

    ``verify=False`` frees the memory of each tensor at once: it proves nothing and cannot be taken back. All that can
    be refused is refused before the first tensor is touched; only running out of memory can then leave a model half
    cut.

    Raises:
        CutError: refused, or rolled back; the model is as before.
        UsageError: unknown layer or index.
    """
    live = live_model(model, optimizer, copies)
    with live.context.together():
        raise_if_unknown_outputs(live.model, outputs)
        rules = rules_of(constants or (fold and not exact), max_drift)
        graph = graph or trace(live.model, example_inputs, streams=streams, linear=linear, outputs=outputs)
        plan = plan_cut(graph.dense, as_flags(graph, dead), limits or Limits())
    options = VerifyOptions(example_inputs, exact and rules is None, verify, tolerance, rules, outputs)
    return execute(live, plan, options)[0]


def live_model(model: nn.Module, optimizer: Optimizers, copies: Iterable[Any]) -> LiveModel:
    """The model with all that must follow when it takes other widths; the ranks that train it ask together.

    Raises:
        CutError: it waits for a backward, or for a step.
        UsageError: it is wrapped or sharded as no cut can follow, or an optimizer or copy is another model's.
    """
    given, model = model, user_module(model)
    raise_if_unfit_sharding(model)
    reshard(model)
    context = context_of(given)
    with context.together():
        torch.clear_autocast_cache()
        raise_if_pending_gradients(model)
        raise_if_pending_backward(model)
        context.raise_if_unfit_wrappers()
        optimizers = as_optimizers(optimizer)
        raise_if_other_optimizers(model, optimizers)
        followers = as_copies(copies, model)
    return LiveModel(model, optimizers, tuple(followers), record_of(model), context)


def rules_of(constants: bool, max_drift: float | None) -> ConstantRules | None:
    """How constants move in this cut.

    Raises:
        UsageError: a bound on what constants change, without constants.
    """
    if max_drift is not None and not constants:
        raise UsageError("max_drift bounds what constants change; pass constants=True with it")
    return ConstantRules(max_drift=max_drift) if constants else None


def as_flags(graph: NeuronGraph, dead: Mapping[str, Any]) -> dict[str, Tensor]:
    """Indices or masks per layer -> masks per layer.

    Raises:
        UsageError: a mask of another width, or an index outside of the layer.
    """
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
        flags[name] = torch.zeros(layer.width, dtype=torch.bool, device="cpu")
        flags[name][chosen.long().flatten()] = True
    return flags


def raise_if_other_optimizers(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """An optimizer of another model: the state of the right one would go stale.

    Raises:
        UsageError: one of them holds none of the model's parameters.
    """
    mine = {id(p) for p in model.parameters()}
    for one in optimizers:
        if not any(id(p) in mine for group in one.param_groups for p in group["params"]):
            raise UsageError(
                f"{type(one).__name__} holds none of the model's parameters; build it from this model's parameters()"
            )
