"""What the code of each module could see in one forward, and whether the forward looked at values."""

from collections import defaultdict

from demp.graph.elements import Labels

LOOKS = frozenset({"_local_scalar_dense", "equal", "nonzero"})
"""ATen operations by which a forward looks at values, to decide by them."""


class Frames:
    """What each module's own code could see in one forward: arguments, results of calls and of operations."""

    def __init__(self) -> None:
        self.visible: dict[str, list[Labels]] = defaultdict(list)
        self.touched: set[str] = set()
        self.looked = False

    def operation(self, frame: str, name: str, operands: list[Labels], results: list[Labels]) -> None:
        """One operation ran in the code of the module ``frame``."""
        self.looked = self.looked or name in LOOKS
        self.touched.update(labels.source for labels in operands if labels.source is not None)
        self.visible[frame].extend(results)
