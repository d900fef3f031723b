"""Dead neurons that stay in the network, late in a run: does the step slow down, and does flushing denormals help?

    .venv/bin/python benchmarks/denormals.py            # about five minutes

Half of the neurons of a ResNet-18 with 16 channels in the stem die at step 50 and are not removed. Their gradients are
zero from then on, so that their moments decay into numbers too small for the ordinary format, which some CPUs compute
with slowly. A dense twin takes the same steps beside it; ratios are dead over dense, per 500 steps. Small batches,
since there the optimizer is the larger share of a step: the worst case. No weight decay, which would keep gradients
alive. Each run has a process of its own, since flushing is a property of threads: set it before the first operation of
torch, or the workers of its pool do not have it. To reach in the last 500 steps: 1.05.
"""

import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

import demp
from common import Ratio, arguments, dying, parsed, seconds, show
from demp.surgery.denormals import EVERY_STEPS, sweep
from demp.train.models import resnet18
from steps import train_step

LIMIT = 1.05
KILL_AT, WINDOW = 50, 500
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(params, lr=1e-3),
    "sgdm": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
}


def main() -> None:
    """Measure, or be one of the processes that do."""
    parser = arguments(
        __doc__,
        once={"help": "used by the benchmark itself: OPTIMIZER:FLUSH, print the times of one run"},
        optimizers={"nargs": "+", "choices": list(OPTIMIZERS), "default": list(OPTIMIZERS)},
        steps={"type": int, "default": 3000},
        batch={"type": int, "default": 4},
        side={"type": int, "default": 16, "help": "pixels of an image's side"},
    )
    chosen = parsed(parser)
    if chosen.once:
        name, _, flush = chosen.once.partition(":")
        print(json.dumps(run(name, flush, chosen.steps, chosen.batch, chosen.side)))
        return
    results = []
    for name in chosen.optimizers:
        for flush in ("keep", "flush", "sweep"):
            command = [sys.executable, __file__, "--once", f"{name}:{flush}"]
            for option in ("threads", "steps", "batch", "side"):
                command += [f"--{option}", str(getattr(chosen, option))]
            results.append(result(name, flush, json.loads(subprocess.check_output(command, text=True))))
    show(results, chosen.json)


def result(name: str, flush: str, found: dict[str, Any]) -> Ratio:
    """The last window as a ratio, the others as notes."""
    dense, dead = found["dense"], found["dead"]
    steps = len(dense)
    ratios = [ours / plain for plain, ours in zip(dense, dead, strict=True)]
    by_window = {
        f"to step {end}": round(statistics.median(ratios[end - WINDOW : end]), 3)
        for end in range(WINDOW, steps + 1, WINDOW)
    }
    denormals = {
        "keep": "denormals kept",
        "flush": "denormals flushed by the processor",
        "sweep": "moments swept as a pruner does",
    }[flush]
    return Ratio(
        f"{name}, {denormals}, last {WINDOW} of {steps} steps", dense[-WINDOW:], dead[-WINDOW:], limit=LIMIT,
        notes={"by_window": by_window, "dead_neurons": found["neurons"], "denormal_entries": found["denormals"]},
    )  # fmt: skip


def run(name: str, flush: str, steps: int, batch: int, side: int) -> dict[str, Any]:
    """Seconds of every step of the dense network and of the one with dead neurons, alternating."""
    if flush == "flush":
        torch.set_flush_denormal(True)
    torch.manual_seed(0)
    dense = resnet18(width=0.25)
    dead = copy.deepcopy(dense)
    trainers = [(model, OPTIMIZERS[name](model.parameters())) for model in (dense, dead)]
    graph = demp.trace(dead, (torch.randn(2, 3, side, side),))
    times: tuple[list[float], list[float]] = ([], [])
    killed: dict[str, torch.Tensor] = {}
    for index in range(steps):
        x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
        if index == KILL_AT:
            killed = dying(dead, graph, 0.5)
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(seconds(lambda which=which, x=x, y=y: train_step(*trainers[which], x, y)))
        if flush == "sweep" and index % EVERY_STEPS == 0:
            sweep([optimizer for _, optimizer in trainers])
    neurons = f"{sum(int(mask.sum()) for mask in killed.values())} of {graph.dense.neurons}"
    return {"dense": times[0], "dead": times[1], "neurons": neurons, "denormals": denormal_entries(trainers[1][1])}


def denormal_entries(optimizer: torch.optim.Optimizer) -> str:
    """How much of the optimizer's state is too small for the ordinary format and not zero."""
    tensors = [
        v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.dim()
    ]
    bits = [tensor.view(torch.int32) & 0x7FFFFFFF for tensor in tensors]
    small = sum(int(((b > 0) & (b < 0x00800000)).sum()) for b in bits)
    return f"{small} of {sum(tensor.numel() for tensor in tensors)}"


if __name__ == "__main__":
    main()
