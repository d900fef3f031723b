"""Hooks on an optimizer's step, so that a training loop stays as it is."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from demp.errors import UsageError
from demp.parallel import Context, local_piece, uncompiled
from demp.surgery.optimizers import hook_step


class Steps(Protocol):
    """What is called around every step of an optimizer."""

    def before_step(self) -> Any:
        """After backward, before the optimizer moves."""
        ...

    def after_step(self) -> Any:
        """Run after the optimizer has updated the parameters."""
        ...

    def skip_step(self) -> Any:
        """Instead of ``after_step`` when the optimizer did not move."""
        ...


class Attachment:
    """The hooks on one optimizer's step, which may move to another's; ``context`` says which ranks take it together."""

    def __init__(self, context: Callable[[], Context]) -> None:
        self._context = context
        self._handles: list[Any] = []

    def move(self, optimizer: torch.optim.Optimizer, steps: Steps) -> None:
        """Hook the step of this optimizer, and of no other."""
        self.remove()
        self._handles = hooked(optimizer, steps, self._context)

    def remove(self) -> None:
        """Remove the hooks from the optimizer it is at."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def hooked(optimizer: torch.optim.Optimizer, steps: Steps, context: Callable[[], Context]) -> list[Any]:
    """Hook the optimizer's step; the handles of the hooks."""
    counts = True

    def before(opt: Any, args: Any, kwargs: Any) -> Any:
        nonlocal counts
        closure, *others = args[1:] or (kwargs.pop("closure", None),)
        counts = closure is not None or not creates_state(opt, context())
        if closure is None:
            return steps.before_step() if counts else None
        if isinstance(opt, torch.optim.LBFGS):
            raise UsageError(
                "LBFGS searches along the loss that its closure returns; use attach=False and add "
                "pruner.penalty_loss() to that loss"
            )

        def closure_and_penalty() -> Any:
            loss = closure()
            steps.before_step()
            return loss

        return (opt, closure_and_penalty, *others), kwargs

    def after(opt: Any, args: Any, kwargs: Any) -> None:
        if counts:
            steps.skip_step() if overflowed(opt) else steps.after_step()

    hook_step(optimizer)
    return [
        optimizer.register_step_pre_hook(uncompiled(before)),
        optimizer.register_step_post_hook(uncompiled(after)),
    ]


def overflowed(optimizer: Any) -> bool:
    """Did a fused optimizer skip its step because a GradScaler found an infinity?"""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def creates_state(optimizer: torch.optim.Optimizer, context: Context) -> bool:
    """Is this the step that torch's distributed checkpoints take to create state: the first, rate 0, no gradient?"""
    if optimizer.state or any(float(group["lr"]) != 0 for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not context.any_of(any(bool(local_piece(g).count_nonzero()) for g in gradients))
