"""Hooks on modules that stay with the module they were put on: its copies and pickles are not watched."""

from collections.abc import Callable
from typing import Any

from torch import nn

from demp.parallel.compiled import uncompiled


class Hook:
    """Calls a function before or after the forward of a module, and of none of its copies.

    What is watched may hold anything, so that neither ``copy.deepcopy`` nor ``pickle`` of the module takes it along: a
    copy has an `ExpiredHook` in its place.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = uncompiled(function)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function and return its result."""
        return self._function(*arguments)

    def __deepcopy__(self, memo: Any) -> "ExpiredHook":
        return ExpiredHook()

    def __reduce__(self) -> Any:
        return ExpiredHook, ()


class ExpiredHook:
    """In the copy of a module that was watched: it does nothing, and goes at the first call."""

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        """Leave the module, whose hooks are being called from a tuple of their own."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook is self]:
                del hooks[key]
                for flags in (module._forward_pre_hooks_with_kwargs, module._forward_hooks_always_called):
                    flags.pop(key, None)
