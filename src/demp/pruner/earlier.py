"""Names of version 0.1 on pruners and views: each works, with a DeprecationWarning."""

import warnings
from typing import Any, Protocol

from torch import Tensor

from demp.activity.probe import Detection
from demp.graph import GraphState
from demp.methods.requirements import Requirements


class Current(Protocol):
    """What the names of today answer."""

    state: GraphState

    def detect(self) -> Detection:
        """Detect which neurons are dead now."""
        ...


class Earlier:
    """What `Pruner` and the view that methods have of a run share."""

    @property
    def gone(self: Current) -> Tensor:
        """Return the removed classes and warn that ``state.removed`` replaces this name."""
        _warn("gone", "state.removed")
        return self.state.removed

    def verdict(self: Current) -> Detection:
        """Detect dead neurons, and warn that ``detect()`` replaces this name."""
        _warn("verdict()", "detect()")
        return self.detect()


class EarlierPruner(Earlier):
    """The same for the pruner."""

    @property
    def wants(self: Any) -> Requirements:
        """Return how the method's answers are carried out, and warn that ``requirements`` replaces this name."""
        _warn("wants", "requirements")
        return self.requirements


class EarlierView(Earlier):
    """The same for the view."""

    @property
    def can_judge(self: Any) -> bool:
        """Are there examples to find dead neurons with? ``can_detect``."""
        _warn("can_judge", "can_detect")
        return self.can_detect


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
