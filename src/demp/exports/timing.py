"""onnxruntime on the exported network beside the dense one: pairs, so that both meet the same machine."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from demp.exports import onnx_file
from demp.exports.examples import rows
from demp.exports.report import Timing

BATCHES = (1, 8, 64)
PAIRS = 25
WARM_UP = 3
SECONDS = 0.02
"""A timing repeats its call until it takes about this long, so that the clock does not matter."""


def timed(model: nn.Module, inputs: Any, ours: Path, dense: Path) -> tuple[Timing, ...]:
    """Latency and throughput of both files at every batch size."""
    sessions = [onnx_file.session(file, file.name) for file in (ours, dense)]
    timings = []
    for batch in BATCHES:
        given = rows(inputs, batch)
        calls = [calling(loaded, onnx_file.feed(model, loaded, given)) for loaded in sessions]
        repeats = max(1, round(SECONDS / min(seconds(call, 1) for call in calls * WARM_UP)))
        pairs = [(seconds(calls[0], repeats), seconds(calls[1], repeats)) for _ in range(PAIRS)]
        timings.append(
            Timing(
                batch=batch,
                pairs=PAIRS,
                latency_ms=1e3 * statistics.median(a for a, _ in pairs),
                dense_latency_ms=1e3 * statistics.median(b for _, b in pairs),
                latency_ratio=statistics.median(a / b for a, b in pairs),
                throughput_ratio=statistics.median(b / a for a, b in pairs),
            )
        )
    return tuple(timings)


def calling(loaded: Any, feed: dict[str, Any]) -> Callable[[], Any]:
    """A function that runs a session once on the given inputs."""
    return lambda: loaded.run(None, feed)


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Seconds per call, as a mean over ``repeats`` calls."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats
