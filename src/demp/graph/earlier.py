"""What version 0.1 asked the graph, and now the state answers: each works, with a DeprecationWarning."""

import warnings
from typing import Any

from torch import Tensor


class EarlierMethods:
    """Methods of version 0.1; ``removed`` (``gone`` there) is a boolean per class."""

    def neurons(self, removed: Tensor | None = None) -> int:
        """Neurons over all layers that are left."""
        return self._asked("neurons", removed).neurons

    def parameters(self, names: set[str], removed: Tensor) -> int:
        """Entries of the named tensors that are left."""
        return self._asked("parameters(names)", removed).parameters(names)

    def sizes(self, removed: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor once the ``removed`` classes are cut."""
        return self._asked("shapes", removed).shapes

    def flops(self, removed: Tensor, *, paper: bool = False) -> int:
        """Forward FLOPs of the example inputs."""
        return self._asked("flops()", removed).flops(paper=paper)

    def flops_by_operation(self, removed: Tensor, *, paper: bool = False) -> list[float]:
        """The same for each contraction, in forward order."""
        return self._asked("flops_by_operation()", removed).flops_by_operation(paper=paper)

    def nothing_gone(self) -> Tensor:
        """Return a boolean vector over classes, all false: nothing is removed."""
        return self._asked("removed", None).removed.clone()

    def _asked(self, now: str, removed: Tensor | None) -> Any:
        graph: Any = self
        warnings.warn(f"ask the state: graph.at(removed).{now}, or graph.dense.{now}", DeprecationWarning, stacklevel=3)
        return graph.dense if removed is None else graph.at(removed)
