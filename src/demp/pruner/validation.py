"""What a pruner accepts: a plain module with removable neurons, and the optimizers that hold its parameters."""

import gc
import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn

from demp.budgets import Meter, least
from demp.errors import UsageError
from demp.graph import NeuronGraph
from demp.methods.base import Method, MethodConfig, Requirements
from demp.parallel import Context, is_sharded, original


def validate_total_steps(total_steps: Any) -> None:
    """The length of a run is a whole number of steps, at least one.

    Raises:
        UsageError: it is anything else.
    """
    if not isinstance(total_steps, Integral) or total_steps <= 0:
        raise UsageError(f"total_steps is {total_steps}; give the number of optimizer steps of the run, at least 1")


def validate_attachment(optimizers: Sequence[torch.optim.Optimizer], *, attach: bool) -> None:
    """Only one optimizer's step can be hooked.

    Raises:
        UsageError: there are several.
    """
    if attach and len(optimizers) > 1:
        raise UsageError("with several optimizers use attach=False and call before_step() and after_step() yourself")


def raise_if_wrapper(model: nn.Module) -> None:
    """The pruner works on the module itself, which it finds inside a compiled one or a DistributedDataParallel.

    Raises:
        UsageError: it is no module, or wrapped in something else.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    kind = type(original(model)).__name__
    if kind == "DataParallel":
        raise UsageError("model is wrapped in DataParallel, which copies it in every step; use DistributedDataParallel")
    if kind == "FullyShardedDataParallel":
        raise UsageError("model is wrapped in FullyShardedDataParallel; shard it with fully_shard (FSDP2) instead")


def raise_if_nothing_removable(model: nn.Module, graph: NeuronGraph) -> None:
    """A model without removable neurons has nothing to gain.

    Raises:
        UsageError: it has none, with the reasons of the graph.
    """
    if not any(bool(layer.removable.any()) for layer in graph.layers):
        reasons = "; ".join(dict.fromkeys(f"{r.name}: {r.reason}" for r in graph.refused[:3]))
        why = reasons or "no activation function follows a convolution or linear layer"
        raise UsageError(f"{type(model).__name__} has no layer whose neurons can be removed ({why})")
    if all(layer.width == 1 for layer in graph.layers if bool(layer.removable.any())):
        raise UsageError(
            f"{type(model).__name__} has one neuron in each layer that may be pruned, and one always stays: nothing "
            "could ever be removed"
        )


def raise_if_foreign_optimizer(
    model: nn.Module, graph: NeuronGraph, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Parameters that shrink must be in the optimizers that were given, or their state would go stale.

    Raises:
        UsageError: a trainable one is in none of them, or an optimizer has no learning rate to say.
    """
    for one in optimizers:
        if any(group.get("lr") is None for group in one.param_groups):
            raise UsageError(
                f"{type(one).__name__} has no learning rate (lr=None: it makes one in each step), and pruning follows "
                "the rate; give it one, for transformers' Adafactor with relative_step=False"
            )
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    shrinking = {slot.tensor for slot in graph.slots}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if named and not any(id(p) in held for p in named.values()):
        raise UsageError("the optimizer holds none of the model's parameters; build it from this model's parameters()")
    missing = [name for name, p in named.items() if name in shrinking and id(p) not in held]
    if missing:
        raise UsageError(
            f"{missing[0]} is trainable but in none of the given optimizers; pass every optimizer as a list "
            "(with attach=False), or set requires_grad=False"
        )


def left_out(model: nn.Module, graph: NeuronGraph, optimizers: Sequence[torch.optim.Optimizer]) -> str:
    """A parameter that shrinks and is trainable now (unfrozen, mostly) but in none of the optimizers, in a sentence."""
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    shrinking = {slot.tensor for slot in graph.slots}
    for name, p in model.named_parameters():
        if name in shrinking and p.requires_grad and id(p) not in held:
            return f"{name} is trainable now but in no optimizer, so nothing trains it; add it with add_param_group"
    return ""


def raise_if_copy_inside(model: nn.Module, graph: NeuronGraph) -> None:
    """A momentum copy of a part of the model inside the model: its own neurons would go at other times.

    Raises:
        UsageError: there is one, and its neurons could go.
    """
    shrinking = {slot.tensor for slot in graph.slots}
    kinds: dict[Any, list[tuple[str, nn.Module]]] = {}
    for name, part in model.named_modules():
        shapes = tuple((n, tuple(p.shape)) for n, p in part.named_parameters())
        if shapes and name:
            kinds.setdefault((type(part), shapes), []).append((name, part))
    for alike in kinds.values():
        trained = [(n, m) for n, m in alike if any(p.requires_grad for p in m.parameters())]
        still = [(n, m) for n, m in alike if not any(p.requires_grad for p in m.parameters())]
        for (name, part), (other, copied) in itertools.product(trained, still):
            if any(f"{other}.{n}" in shrinking for n, _ in copied.named_parameters()) and is_copy(part, copied):
                raise UsageError(
                    f"{other} is a copy of {name} inside the {type(model).__name__} and is not trained: the two would "
                    "lose different neurons, and what updates one from the other would meet two widths. Prune "
                    f"model.{name} alone, and give the copy: copies=[model.{other}]"
                )


def is_copy(part: nn.Module, other: nn.Module) -> bool:
    """Have two modules of one form the same values, of which some were drawn?"""
    pairs = list(zip(part.parameters(), other.parameters(), strict=True))
    if any(p is q or is_sharded(p) or p.is_meta or not torch.equal(p, q) for p, q in pairs):
        return False
    return any(p.dim() > 1 and bool((p != p.flatten()[0]).any()) for p, _ in pairs)


def raise_if_second_pruner(pruner: Any) -> None:
    """Two pruners of one model would penalise it twice, and each would cut behind the other's back.

    The first is found among the objects that Python holds; one that finished or was detached does not count.

    Raises:
        UsageError: another pruner is at work on this model.
    """
    mine, kind = {id(p) for p in pruner.model.parameters()}, type(pruner)

    def others() -> list[Any]:
        alive = [o for o in gc.get_objects() if type(o) is kind and o is not pruner]
        at_work = [o for o in alive if not getattr(o, "_detached", True)]
        return [o for o in at_work if any(id(p) in mine for p in o.model.parameters())]

    if not others():
        return
    gc.collect()  # one that nobody holds any more may wait to be collected
    for first in others()[:1]:
        raise UsageError(
            f"this {type(first.model).__name__} is pruned already, by {first.method.name} at step {first.step} of "
            f"{first.total_steps}; call finish() or detach() on that pruner first, or build the model anew"
        )


def raise_if_in_pieces(name: str, requirements: Requirements, context: Context, *, masks: bool) -> None:
    """What needs whole parameters, where ``fully_shard`` keeps pieces of them.

    Raises:
        UsageError: the method needs them, and the model is sharded.
    """
    if not context.sharded:
        return
    if requirements.penalty_in == "loss":
        raise UsageError("penalty_in='loss' needs whole parameters, and fully_shard keeps pieces; use 'gradient'")
    if requirements.penalty_on == "channels":
        raise UsageError(f"{name} needs the norm of whole slices, and fully_shard keeps pieces; use DDP")
    if masks:
        raise UsageError(f"{name} masks single weights, and fully_shard keeps pieces of them; use DDP")


def raise_if_other_pruner(pruner: Any, context: Context) -> None:
    """All ranks must prune the same model in the same way, or their noise and their cuts would differ.

    Raises:
        UsageError: they differ, on all ranks.
    """
    if context.alone:
        return
    layers = [(layer.name, layer.width) for layer in pruner.graph.layers]
    for what, value in (
        ("prunes another model", layers),
        ("prunes by another method", (pruner.method.name, pruner.config)),
        ("has another total_steps", pruner.total_steps),
        ("has another seed", pruner.seed),
    ):
        remedy = "build the pruner with the same model, options, total_steps and seed on every rank"
        context.raise_if_disagreement(what, value, remedy=remedy, kind=UsageError)


def raise_if_unreachable(method: Method, meter: Meter, config: MethodConfig) -> None:
    """A budget that the method cannot aim at, or that no network of these layers meets.

    Raises:
        UsageError: the method takes no budget, or every layer at its floor is still above it.
    """
    if config.budget is None:
        return
    if not method.takes_budget:
        raise UsageError(
            f"{method.name} has no target, so it cannot land on a budget ({config.budget}); leave the budget out, or "
            "choose a method that has one, for example demp"
        )
    graph, goals = meter.graph, meter.goals(config.budget)
    nobody = graph.none_removed()
    smallest = least(meter, goals, config.limits())
    missed = meter.lack(goals, smallest)
    if not missed:
        return
    name = next(iter(missed))
    dense = meter.spent(name, nobody)
    wanted, left = goals[name] / dense, meter.spent(name, smallest) / dense
    stuck = sum(refusal.neurons for refusal in graph.refused if refusal.name in graph.index)
    why = f"; {stuck} neurons are refused by the graph (demp.inspect says why)" if stuck else ""
    floor, multiple = config.limits().floor, config.limits().multiple
    rounded = f", rounded up to a multiple of {multiple} neurons or heads" if multiple > 1 else ""
    lower = "a lower floor or multiple" if multiple > 1 else "a lower floor"
    raise UsageError(
        f"the budget of {wanted:.3g} of the dense {name} cannot be reached: {left:.3g} is left when every layer is at "
        f"its floor of {floor}{rounded}{why}; give a budget above that, {lower}, or exclude fewer layers"
    )
