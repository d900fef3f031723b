"""Which torch optimizers are in what the user gave: one, several, or a wrapper around one."""

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import UsageError

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None

WRAPPERS = ("AcceleratedOptimizer", "_FabricOptimizer", "LightningOptimizer")
"""Classes whose ``step`` is that of their ``optimizer`` (Accelerate, Fabric, Lightning)."""
BY_HAND = "attach=False, and call before_step() and after_step() around {whose} step()"


def as_optimizers(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    """None, one or several optimizers as a tuple; of a known wrapper the optimizer that it steps.

    Raises:
        UsageError: something else was given, or a wrapper that does more than to step what is in it.
    """
    if optimizer is None:
        return ()
    alone = (torch.optim.Optimizer, str, bytes, Tensor, Mapping, nn.Module, type)
    several = isinstance(optimizer, Iterable) and not isinstance(optimizer, alone)
    return tuple(map(stepped_by, optimizer)) if several else (stepped_by(optimizer),)


def stepped_by(given: Any) -> torch.optim.Optimizer:
    """The torch optimizer that steps when the user steps this one.

    Raises:
        UsageError: there is none, or it is not known when it steps.
    """
    kinds = {kind.__name__ for kind in type(given).__mro__}
    if "DeepSpeedOptimizerWrapper" in kinds:
        raise UsageError(
            "optimizer is DeepSpeed's, which steps inside of its engine and keeps the weights there: train without "
            "DeepSpeed"
        )
    if kinds.intersection(WRAPPERS):
        return stepped_by(given.optimizer)
    if isinstance(given, torch.optim.Optimizer):
        return given
    raise UsageError(f"optimizer {described(given)}")


def described(given: Any) -> str:
    """What was given in place of an optimizer, and what to give."""
    kind = type(given).__name__
    if isinstance(given, type):
        return f"is the class {given.__name__}; give an optimizer: {given.__name__}(model.parameters())"
    if isinstance(given, (Tensor, Mapping)):
        return (
            "holds parameters (model.parameters() or groups of them); give the optimizer that is made from them, for "
            "example torch.optim.AdamW(model.parameters())"
        )
    if isinstance(given, str):
        return f"is the string {given!r}; give the optimizer itself, for example torch.optim.AdamW(model.parameters())"
    inside = {name: one for name, one in attributes(given).items() if isinstance(one, torch.optim.Optimizer)}
    if not inside or isinstance(given, (types.FunctionType, types.MethodType)):
        return f"is a {kind}; give a torch.optim.Optimizer, a list of them, or None"
    name, one = next(iter(inside.items()))
    theirs = "the wrapper's"
    if isinstance(given, torch.optim.lr_scheduler.LRScheduler):
        return f"is the learning rate scheduler {kind}; give the {type(one).__name__} that it schedules, its .{name}"
    if kind.startswith("ScheduleFreeWrapper"):
        return (
            f"is a {kind}, which steps its {type(one).__name__} on weights that it keeps beside the model's (z), where "
            f"nobody may look or cut; give its .{name} with {BY_HAND.format(whose=theirs)}"
        )
    return (
        f"is a {kind}, which is no torch.optim.Optimizer; if its step() calls that of the {type(one).__name__} in its "
        f".{name} on the model's weights, give that one; otherwise give it with {BY_HAND.format(whose=theirs)}"
    )


def attributes(given: Any) -> Mapping[str, Any]:
    """What an object holds by name."""
    return getattr(given, "__dict__", {})


def hook_step(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer's step run its hooks also where its class never ran ``Optimizer.__init__``, which sees to it.

    Raises:
        UsageError: the optimizer has no place for hooks.
    """
    name = type(optimizer).__name__
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        inside = [key for key, one in attributes(optimizer).items() if isinstance(one, torch.optim.Optimizer)]
        other = f"give its .{inside[0]}, if its step() calls that one's, or " if inside else ""
        raise UsageError(
            f"the step of {name} takes no hooks (it never called Optimizer.__init__); {other}use "
            f"{BY_HAND.format(whose='its')}"
        )
    if getattr(type(optimizer).step, "hooked", False):
        return
    optimizer._patch_step_function()
    own = vars(optimizer).get("step")
    if own is None:
        return

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    wrapped = torch.optim.Optimizer.profile_hook_step(step)
    optimizer.__dict__["step"] = types.MethodType(wrapped, optimizer)  # a scheduler had taken the step without hooks
