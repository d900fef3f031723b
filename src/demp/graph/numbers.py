"""Numbers that a forward computes with: those that change when a width does are written for the dense model.

``x * x.shape[-1] ** -0.5`` runs at any width and means something else at each. A rehearsal with fewer neurons shows a
number then that the forward of the dense model does not have.
"""

import sys
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from demp.errors import TraceError
from demp.graph.carrying_out import carried_out
from demp.graph.nested import flat
from demp.graph.places import running_line

ARITHMETIC = frozenset({"mul", "div", "add", "sub", "rsub", "pow", "floor_divide", "remainder", "true_divide"})
"""Operations whose whole numbers count, too; elsewhere they are axes and lengths."""


class WidthError(TraceError):
    """A forward computes with a width: in which ``line`` it does so first."""

    def __init__(self, message: str, line: str) -> None:
        super().__init__(message)
        self.line = line


class Numbers(TorchDispatchMode):
    """Collects the numbers of one forward in ``found``, but for those of calls that a cut has planned.

    Where those stand that are not ``known`` is in ``lines``.
    """

    def __init__(self, known: frozenset[str] | None = None) -> None:
        super().__init__()
        self.found: set[str] = set()
        """To twelve digits: the same number may be reached in two ways."""
        self.known, self.lines = known, dict[str, str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and let the operation run."""
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        kinds = (int, float) if name in ARITHMETIC else float
        numbers = [
            one for one in flat((*args, *(kwargs or {}).values())) if isinstance(one, kinds) and type(one) is not bool
        ]
        if numbers and not is_planned():
            found = {f"{number:.12g}" for number in numbers}
            if self.known is not None and found - self.known:
                self.lines |= dict.fromkeys(found - self.known, running_line())
            self.found |= found
        return func(*args, **(kwargs or {}))


def is_planned() -> bool:
    """Does a planned call run now?"""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is carried_out.__code__:
            return True
        frame = frame.f_back
    return False
