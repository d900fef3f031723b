"""Numbers that a forward computes with: those that change when a width does are written for the dense model.

``x * x.shape[-1] ** -0.5`` runs at any width and means something else at each. A rehearsal with fewer neurons shows a
number then that the forward of the dense model does not have.
"""

import sys
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from demp.graph.carrying_out import carried_out
from demp.graph.nested import flat

ARITHMETIC = frozenset({"mul", "div", "add", "sub", "rsub", "pow", "floor_divide", "remainder", "true_divide"})
"""Operations whose whole numbers count, too; elsewhere they are axes and lengths."""


class Numbers(TorchDispatchMode):
    """Collects the numbers of one forward in ``found``, but for those of calls that a cut has planned."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        """To twelve digits: the same number may be reached in two ways."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and let the operation run."""
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        kinds = (int, float) if name in ARITHMETIC else float
        numbers = [
            one for one in flat((*args, *(kwargs or {}).values())) if isinstance(one, kinds) and type(one) is not bool
        ]
        if numbers and not is_planned():
            self.found |= {f"{number:.12g}" for number in numbers}
        return func(*args, **(kwargs or {}))


def is_planned() -> bool:
    """Does a planned call run now?"""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is carried_out.__code__:
            return True
        frame = frame.f_back
    return False
