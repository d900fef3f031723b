"""``torch.compile``: run the original forward, forget compiled code after a cut, say when compiling does not pay."""

import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from demp.errors import UsageError

logger = logging.getLogger("demp")


def in_use() -> bool:
    """May anything in this process be compiled? Without Dynamo nothing is, and importing it takes a second."""
    return "torch._dynamo" in sys.modules


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled modules and functions run as they were written."""
    if not in_use():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that stays Python where a compiled function or module calls it."""
    return torch.compiler.disable(hook) if in_use() else hook  # type: ignore[return-value]


def forget_compiled_code() -> None:
    """Drop all compiled code of the process, so that the next calls compile for the new shapes.

    Dynamo compiles one piece of code 8 times and then runs it eagerly for good, with a warning. Nothing narrower is
    documented, and the step or loss that the user compiled is known to Dynamo alone.
    """
    if in_use():
        torch.compiler.reset()


def original(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``'s wrapper; any other as it is."""
    while isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        model = model._orig_mod  # type: ignore[assignment]
    return model


def is_compiled(model: nn.Module) -> bool:
    """Is the module, or a part of it, compiled?"""
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None  # type: ignore[attr-defined]
        for module in model.modules()
    )


def raise_if_compiled(model: nn.Module) -> None:
    """Compiled code does not see hooks that come and go, so that watching it by hooks would find no dead neuron.

    Raises:
        UsageError: the model, or a part of it, is compiled.
    """
    if is_compiled(model):
        raise UsageError(
            "the model is compiled, and the forwards of a compiled model cannot be watched; give training examples to "
            "look for dead neurons on (batches=... of a pruner, demp.alive(model, batches))"
        )


class Stopwatch:
    """Times the user's steps from cut to cut, and says once if compiling costs more than the cuts save.

    The first step after a cut compiles; the median of the others does not.
    """

    def __init__(self, on: bool) -> None:
        self._on = on
        self._began: float | None = None
        self._seconds: list[float] = []
        self._steady: float | None = None

    def start(self, *, after_cut: bool) -> None:
        """The user's next step begins."""
        if self._on and after_cut:
            advice = self._advice()
            if advice is not None:
                logger.warning("%s", advice)
                self._on = False
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Record how long the step took that ends now."""
        if self._on and self._began is not None:
            self._seconds.append(time.perf_counter() - self._began)

    def _advice(self) -> str | None:
        """From the steps between the last two cuts."""
        (first, *others), self._seconds = self._seconds or [0.0], []
        if not others:
            return None
        before, self._steady = self._steady, statistics.median(others)
        compiling = first - self._steady
        if before is None or compiling < self._steady:  # this step did not compile
            return None
        return hint(compiling, before - self._steady, 1 + len(others))


def hint(compiling: float, saved: float, steps: int) -> str | None:
    """Advice to cut less often, if compiling took more seconds than the ``steps`` until the next cut saved.

    ``saved`` is the seconds that the cut saved per step.
    """
    if compiling <= saved * steps:
        return None
    pays = f"pays after {round(compiling / saved)} steps" if saved > 0 else "never pays"
    return (
        f"compiling after a cut took {compiling:.1f} s and the cut saved {1e3 * max(saved, 0.0):.1f} ms per step: that "
        f"{pays}, and the next cut came after {steps}. Cut less often (a longer period), or compile after the last cut"
    )
