"""How long demp.trace takes on ResNet-50 and ViT-B/16: the very first call of a process, and later ones.

    .venv/bin/python benchmarks/trace_time.py

Weights and example are on meta, 224 x 224; for comparison the same with real weights on the CPU. Each first call has a
process of its own and includes what demp imports for it. To reach: 1 s for ResNet-50, 2 s for ViT-B/16.
"""

import json
import statistics
import subprocess
import sys
from typing import Any

import torch

import demp
from common import arguments, parsed, seconds, show, verdict
from demp.train.models import resnet50, vit_b_16

MODELS = {"resnet50": (resnet50, 1.0), "vit_b_16": (vit_b_16, 2.0)}
FIRST_CALLS = 3


def main() -> None:
    """Measure, or be one of the processes that do."""
    parser = arguments(
        __doc__, once={"help": "used by the benchmark itself: MODEL:DEVICE, print seconds of a few calls"}
    )
    chosen = parsed(parser)
    if chosen.once:
        name, _, device = chosen.once.partition(":")
        print(json.dumps(calls(name, device)))
        return
    show([measure(name, device, chosen.threads) for device in ("meta", "cpu") for name in MODELS], chosen.json)


def calls(name: str, device: str, warm: int = 5) -> list[float]:
    """Seconds of the first call in this process and of ``warm`` more."""
    with torch.device(device):
        model, x = MODELS[name][0](), torch.empty(2, 3, 224, 224)
    return [seconds(lambda: demp.trace(model, (x,))) for _ in range(1 + warm)]


def measure(name: str, device: str, threads: int) -> dict[str, Any]:
    """Several processes, each with a first call."""
    command = [sys.executable, __file__, "--once", f"{name}:{device}", "--threads", str(threads)]
    runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(FIRST_CALLS)]
    first, later = [run[0] for run in runs], [value for run in runs for value in run[1:]]
    result = {
        "name": f"trace of {name} on {device}",
        "first_call_s": round(statistics.median(first), 3),
        "first_calls_s": [round(value, 3) for value in first],
        "later_s": round(statistics.median(later), 3),
        "later_calls": len(later),
    }
    if device == "meta":
        limit = MODELS[name][1]
        result |= {"to_reach_s": limit, "verdict": verdict(statistics.median(first) <= limit)}
    return result


if __name__ == "__main__":
    main()
