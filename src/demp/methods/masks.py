"""The contract of a method that masks single weights: what it is asked beside the questions that every method gets."""

import warnings
from functools import cache
from typing import Any

from torch import Tensor

from demp.methods.base import Method, View


class MaskMethod(Method):
    """A pruning method that says which single weights are there; all others are held at zero until masks change."""

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        """Masks before the first step: parameter name -> which entries are there."""
        return {}

    def initial_factors(self, view: View) -> dict[str, float]:
        """By what are parameters multiplied before the first step, where their initial masks ask for it?"""
        return {}

    def masks_due(self, step: int) -> bool:
        """Do masks change in this step, the first of which is 0, between its gradients and the optimizer?"""
        return False

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        """Masks from this step on; parameters that are not named keep theirs."""
        return {}

    def skips_updates(self) -> bool:
        """Does the optimizer move nothing on the steps on which masks change?"""
        return False


QUESTIONS = ("initial_masks", "initial_factors", "masks_due", "update_masks")
"""What version 0.1 asked every method about masks."""


@cache
def of_today(method: type[Method]) -> type[Method]:
    """The class itself; one of version 0.1 that answers questions about masks as a `MaskMethod`, with one warning.

    Whoever runs a method class that it was given asks here first, so that elsewhere the class alone says what it is.
    """
    if issubclass(method, MaskMethod) or not any(hasattr(method, question) for question in QUESTIONS):
        return method
    text = f"{method.__name__} masks weights: derive it from demp.methods.MaskMethod in place of demp.methods.Method"
    warnings.warn(text, DeprecationWarning, stacklevel=2)

    def skips_updates(self: Method) -> bool:
        """Return what the earlier ``Wants`` says."""
        return bool(getattr(self.requirements(), "skip_updates", False))

    bases: tuple[Any, ...] = (method, MaskMethod)
    same = {"__module__": method.__module__, "__qualname__": method.__qualname__, "__doc__": method.__doc__}
    return type(method.__name__, bases, {**same, "skips_updates": skips_updates})
