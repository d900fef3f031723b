"""When to begin to remove, found by itself: once the dead neurons of the last layer stay dead (Fig. 17, Table 3).

In the paper's ViT most neurons of the last block are dead early in the run and come back to life later; those that are
removed before are lost. The paper begins after that and does not say when (gap 29).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from demp.graph import NeuronGraph
from demp.graph.parts import LINEAR, STREAM

CHECKS = 3
"""So many checks in a row in which the dead stay dead, and removal begins."""
LATEST = 0.6
"""Share of the run after which it begins in any case."""


class Revival:
    """Watches the last layer that may lose neurons, check after check, until its dead stay dead."""

    def __init__(self) -> None:
        self.over = False
        self.quiet = 0
        """Checks in a row in which no neuron came back."""
        self._dead: Tensor | None = None

    def wait(self, graph: NeuronGraph, dead: Mapping[str, Tensor], progress: float) -> str:
        """Look at the dead of this check; why nothing is removed yet, or empty once removal may begin.

        ``dead``: layer name to boolean per neuron; ``progress``: share of the run that is done.
        """
        activations = [layer for layer in graph.layers if layer.activation not in (STREAM, LINEAR)]
        watched = [layer.name for layer in activations if bool(layer.removable.any()) and layer.name in dead]
        last = watched[-1] if watched else ""
        self.over = self.over or not last or progress >= LATEST
        if self.over:
            return ""
        before, self._dead = self._dead, dead[last].cpu().clone()
        back = 0 if before is None else int((before & ~self._dead).sum())
        self.quiet = 0 if before is None or back or not bool(before.any()) else self.quiet + 1
        self.over = self.quiet >= CHECKS
        if self.over:
            return ""
        seen = f"{back} of its neurons came back to life" if back else f"{self.quiet} checks of {CHECKS} so far"
        return f"nothing is removed before the dead of {last} stay dead: {seen}"

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        return {"over": self.over, "quiet": self.quiet, "dead": self._dead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run was."""
        self.over, self.quiet, self._dead = bool(state["over"]), int(state["quiet"]), state["dead"]
