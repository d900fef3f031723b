"""Optimizers that step a pruner's model without the pruner: found when they step, named once, and cut with the rest."""

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from demp.graph import NeuronGraph
from demp.parallel import everyone

logger = logging.getLogger("demp")

Optimizers = tuple[torch.optim.Optimizer, ...]

PATIENCE = 10
"""So many times the forwards of a usual step may pass without a step."""
USUAL = 5
"""Forwards of a step, at least; before the first step ten times as many."""


class OtherOptimizers:
    """Watches which optimizers step the parameters that shrink, and counts forwards without a step of the pruner's own.

    An optimizer inside the pruner's own, or around it (sharpness-aware minimisation), steps as often as the pruner's
    and is not named; the state of all that were seen follows a cut.
    """

    def __init__(
        self, model: nn.Module, graph: NeuronGraph, own: Callable[[], tuple[torch.optim.Optimizer, ...]]
    ) -> None:
        self._kind, self._own = type(model).__name__, own
        names = {slot.tensor for slot in graph.slots}
        self._shrinking = {id(p) for name, p in model.named_parameters() if name in names}
        self._seen: dict[int, Any] = {}
        """Those that stepped, by id, weakly."""
        self._steps_at: dict[int, int] = {}
        """How many steps the pruner had counted when they last did."""
        self._named: dict[int, str] = {}
        self._steps = self._forwards = self._most = 0
        self._idle, self._left_out = False, ""
        hook = _Hook(self)
        self._handle = register_optimizer_step_post_hook(hook)
        weakref.finalize(self, self._handle.remove)

    def close(self) -> None:
        """Remove the hook that watches all optimizers."""
        self._handle.remove()

    def keep(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """These held the parameters until now: as long as they live their state follows."""
        self._seen |= {id(one): weakref.ref(one) for one in optimizers}

    def own_step(self) -> None:
        """Note that the pruner's own optimizer has stepped."""
        self._steps += 1
        self._most, self._forwards = max(self._most, self._forwards), 0

    def forward(self) -> None:
        """Note a training forward; warn once if many run without a step of the pruner's own optimizer."""
        self._forwards += 1
        if self._idle or self._forwards <= PATIENCE * max(self._most, USUAL if self._steps else PATIENCE * USUAL):
            return
        self._idle = True
        if everyone().is_main_process:
            logger.warning(
                "%s ran %d training forwards without a step of the optimizer that its pruner is attached to (%s): "
                "nothing is pushed, checked or cut. Step it, hand over with pruner.attach_to(optimizer), or call "
                "pruner.before_step() and pruner.after_step() in a pruner with attach=False",
                *(self._kind, self._forwards, self._own_names()),
            )

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Some optimizer of this process has stepped."""
        if any(optimizer is one for one in self._own()):
            return
        held = (id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if not any(one in self._shrinking for one in held):
            return
        key, steps = id(optimizer), self._steps
        known = self._seen.get(key)
        if known is not None and known() is optimizer and self._steps_at.get(key) == steps and key not in self._named:
            self._named[key] = type(optimizer).__name__
            if everyone().is_main_process:
                logger.warning("%s", self._sentence(type(optimizer).__name__))
        self._seen[key], self._steps_at[key] = weakref.ref(optimizer), steps

    def cut_too(self) -> Optimizers:
        """Those that are alive and share no state with the pruner's own."""
        own = self._own()
        states = {id(value) for one in own for value in (one.state, *one.state.values())}
        found = [one for ref in self._seen.values() if (one := ref()) is not None and all(one is not o for o in own)]
        return tuple(one for one in found if not {id(one.state), *map(id, one.state.values())} & states)

    def notes(self, left_out: str = "") -> tuple[str, ...]:
        """What a report must say: what steps the model instead, and which parameter nothing steps (logged once)."""
        if left_out and left_out != self._left_out and everyone().is_main_process:
            logger.warning("%s", left_out)
        self._left_out = left_out
        found = tuple(self._sentence(name) for name in dict.fromkeys(self._named.values()))
        return (left_out, *found) if left_out else found

    def handed_over(self) -> None:
        """Another optimizer is the pruner's own from now on."""
        self._named, self._steps_at, self._idle, self._forwards = {}, {}, False, 0

    def _sentence(self, name: str) -> str:
        mine = f"is attached to {self._own_names()}" if self._own() else "has no optimizer yet"
        return (
            f"the optimizer {name} steps {self._kind} while its pruner {mine}: such steps are not pushed, checked or "
            f"counted. Hand over with pruner.attach_to(optimizer), or call finish() before another phase begins"
        )

    def _own_names(self) -> str:
        return ", ".join(dict.fromkeys(type(one).__name__ for one in self._own())) or "none"


class _Hook:
    """Calls ``stepped`` as long as something else holds the watcher."""

    def __init__(self, watcher: OtherOptimizers) -> None:
        self._watcher = weakref.ref(watcher)

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Report the step of any optimizer to the watcher, if it still exists."""
        watcher = self._watcher()
        if watcher is not None:
            watcher.stepped(optimizer)
