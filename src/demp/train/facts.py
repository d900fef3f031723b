"""What is known of a data set once it was read."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a model needs to know about its data; stored with checkpoints and artifacts."""

    name: str
    num_classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalize: str
    store_size: int
    train_size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-ready; `from_dict` reads them back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Facts":
        """Build the facts from a dictionary; the inverse of `to_dict`."""
        pairs = {name: tuple(values[name]) for name in ("mean", "std")}
        return cls(**{**values, **pairs})
