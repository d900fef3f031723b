"""What an export wrote and what was checked: small, frozen, JSON-ready."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """onnxruntime on the exported network and on the dense one, in alternating pairs at one batch size."""

    batch: int
    pairs: int
    latency_ms: float
    """Median time of one call."""
    dense_latency_ms: float
    latency_ratio: float
    """Median over the pairs of the exported network's time over the dense one's; below 1 is faster."""
    throughput_ratio: float
    """Examples per second over the dense network's, the median over the same pairs; above 1 is faster."""


@dataclass(frozen=True)
class ExportReport:
    """One export that was written, read back and found to agree with the model."""

    to: str
    path: str
    """The folder."""
    file: str
    """The file of the model in it."""
    bytes: int
    """Size of that file, with what it keeps beside itself."""
    loads_with: str
    """What reads it: torch.export.load, onnxruntime, torch.load, demp.load or transformers."""
    model: str
    """Class of the model."""
    batch_sizes: tuple[int, ...]
    """Batch sizes at which the file was read back and compared."""
    examples: int
    """Different examples that the comparison used."""
    difference: float
    """Largest output difference over the output scale; 0 is equal to the bit."""
    tolerance: float
    """The largest ``difference`` that would have been kept."""
    neurons: int
    neurons_dense: int
    parameters: int
    parameters_dense: int
    flops: int
    """Of one forward of one example."""
    flops_dense: int
    timings: tuple[Timing, ...] = ()
    """Empty unless it was measured."""
    notes: tuple[str, ...] = ()
    options: str = ""
    """What the loader has to be told beside the folder, as Python code: ``experts_implementation='eager'``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        speed = "".join(
            f"\nonnxruntime at batch {t.batch}: {t.latency_ms:.3f} ms, dense {t.dense_latency_ms:.3f} ms, "
            f"latency x {t.latency_ratio:.2f}, throughput x {t.throughput_ratio:.2f}"
            for t in self.timings
        )
        return (
            f"{self.path}/{self.file}: {self.bytes:,} bytes, read back and compared at batch sizes {sizes}: "
            f"largest difference {self.difference:.1e} (at most {self.tolerance:g}){speed}"
        )
