"""What all benchmarks share: pairs of timings, the machine, the printed result.

A benchmark times the plain thing and ours in one process, alternating, and reports the ratio of each pair. Whatever
else the machine does then meets both.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from demp.graph import NeuronGraph


@dataclass(frozen=True)
class Ratio:
    """Seconds of the plain thing and of ours, pair by pair."""

    name: str
    plain: list[float]
    ours: list[float]
    limit: float | None = None
    """The largest median that reaches the goal."""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Ours over plain, in the order measured."""
        return [ours / plain for plain, ours in zip(self.plain, self.ours, strict=True)]

    @property
    def median(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with every pair."""
        return {
            "name": self.name,
            "median": self.median,
            "min": min(self.ratios),
            "max": max(self.ratios),
            "pairs": len(self.ratios),
            "limit": self.limit,
            "plain_seconds": self.plain,
            "ours_seconds": self.ours,
            **self.notes,
        }

    def __str__(self) -> str:
        ratios = self.ratios
        reached = "" if self.limit is None else f", to reach {self.limit:g}: {verdict(self.median <= self.limit)}"
        typical = (
            f"{1e3 * statistics.median(self.plain):.1f} ms plain, {1e3 * statistics.median(self.ours):.1f} ms ours"
        )
        spread = f"{min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} pairs"
        notes = "".join(f"; {key.replace('_', ' ')} {value}" for key, value in self.notes.items())
        return f"{self.name}: {self.median:.3f} ({spread}{reached}); {typical}{notes}"


def verdict(reached: bool) -> str:
    """A word for a goal."""
    return "reached" if reached else "MISSED"


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_pairs(
    name: str,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    pairs: int,
    warmup: int = 3,
    limit: float | None = None,
    **notes: Any,
) -> Ratio:
    """Time both, alternating; which of the two goes first alternates too."""
    for _ in range(warmup):
        plain()
        ours()
    measured: tuple[list[float], list[float]] = ([], [])
    for index in range(pairs):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            measured[which].append(seconds((plain, ours)[which]))
    return Ratio(name, *measured, limit=limit, notes=notes)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def arguments(description: str | None, **options: dict[str, Any]) -> argparse.ArgumentParser:
    """A parser with ``--json`` and ``--threads``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its own choice")
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with the threads set."""
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def show(results: Sequence[Ratio | dict[str, Any]], as_json: bool) -> None:
    """Print all results with the machine."""
    if as_json:
        plain = [result.to_dict() if isinstance(result, Ratio) else result for result in results]
        print(json.dumps({"machine": machine(), "results": plain}, indent=1))
        return
    for result in results:
        print(result if isinstance(result, Ratio) else sentence(result))
    print("; ".join(f"{key} {value}" for key, value in machine().items()))


def sentence(result: dict[str, Any]) -> str:
    """One line of a result that is no ratio."""
    return f"{result['name']}: " + ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in result.items() if key != "name"
    )


@torch.no_grad()
def dying(model: nn.Module, graph: NeuronGraph, share: float) -> dict[str, torch.Tensor]:
    """Make about ``share`` of the removable neurons dead, and say which: masks per layer.

    The scale and shift of their batch norm become zero, so that what they say is zero on any input; behind a residual
    sum the shift becomes lower than any stream is high.
    """
    removable = graph.none_removed()
    for layer in graph.layers:
        removable[layer.classes[layer.removable]] = True
    chosen = removable & (torch.rand(graph.classes, generator=torch.Generator().manual_seed(0)) < share)
    tensors = dict(model.named_parameters())
    owners = {(slot.tensor, slot.axis): slot.classes for slot in graph.slots}
    summed = graph.none_removed()
    for join in graph.joins:
        summed[join.branch] = True
    for norm in graph.norms:
        for name, low in ((norm.scale, 0.0), (norm.shift, -1e6)):
            if name in tensors and (name, 0) in owners:
                classes = owners[name, 0].to(tensors[name].device)
                tensors[name][chosen[classes]] = 0.0
                tensors[name][(chosen & summed)[classes]] = low
    return {layer.name: chosen[layer.classes] for layer in graph.layers if bool(chosen[layer.classes].any())}
