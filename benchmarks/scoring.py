"""What scoring costs on ResNet-50: passes forward and backward, and the peak of memory beside a training step's.

    .venv/bin/python benchmarks/scoring.py

Passes are counted, not timed: forwards of the model, and derivatives asked of autograd. To reach for SNAP: 12 per
scoring. Memory is the peak of a fresh process over what it held before the model was built: one that trains a few
steps (SGD with momentum), and one that trains as many and then scores on batches of the same size, with gradients and
momentum still held. To reach: 3 times the training's.
"""

import argparse
import os
import resource
import subprocess
import sys
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from common import arguments, parsed, show, verdict
from demp.importance import gates
from demp.train.models import resnet50

PASSES, MEMORY = 12, 3.0
STEPS = 3


def main() -> None:
    """Count and measure, or be one of the measured processes."""
    parser = arguments(
        __doc__,
        batch={"type": int, "default": 16},
        pixels={"type": int, "default": 96, "help": "height and width of the images"},
        measured={"choices": ["training", *gates.FORWARDS, "check"], "help": argparse.SUPPRESS},
    )
    chosen = parsed(parser)
    if chosen.measured:
        print(peak(chosen.measured, chosen.batch, chosen.pixels))
        return
    results = [passes("snap", target) for target in (0.5, 0.8)]
    results += [passes("cropit-s", 0.5, **more) for more in ({"score": "weight-flow"}, {"score": "gate-flow"})]
    training = in_process("training", chosen)
    for kind in (*gates.FORWARDS, "check"):
        mine = in_process(kind, chosen)
        name = "a whole check of EarlyCroP-S (weight-flow, cut, proof)" if kind == "check" else f"scoring by {kind}"
        ratio = mine / training
        results.append({
            "name": f"memory of {name} over training", "ratio": round(ratio, 2), "to_reach": MEMORY,
            "verdict": verdict(ratio <= MEMORY), "training_MiB": training >> 20, "peak_MiB": mine >> 20,
            "batch": chosen.batch, "pixels": chosen.pixels,
        })  # fmt: skip
    show(results, chosen.json)


def network() -> nn.Module:
    """ResNet-50 at full width."""
    torch.manual_seed(0)
    return resnet50(10)


def examples(batch: int, pixels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, pixels, pixels, generator=source)
    return x, torch.randint(10, (batch,), generator=source)


def passes(method: str, target: float, **options: str) -> dict[str, object]:
    """Count what one run of the method before training asks for, on small images."""
    model, counts = network(), {"forward": 0, "backward": 0}
    plain_loss, plain_grad = gates.Gated.loss, torch.autograd.grad

    def loss(*args: object, **kwargs: object) -> Tensor:
        counts["forward"] += 1
        return plain_loss(*args, **kwargs)  # type: ignore[arg-type]

    def grad(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        counts["backward"] += 1
        return plain_grad(*args, **kwargs)  # type: ignore[arg-type]

    batches = [examples(2, 32, seed) for seed in range(20)]
    with mock.patch.object(gates.Gated, "loss", loss), mock.patch.object(torch.autograd, "grad", grad):
        pruner = demp.methods.create(
            method, model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=(batches[0][0],), total_steps=10,
            batches=batches, loss_fn=F.cross_entropy, target_neuron_sparsity=target, **options,
        )  # fmt: skip
    rounds = len(pruner.history)
    found = {
        "name": ", ".join([method, *options.values(), f"target {target:g}"]),
        "rounds": rounds,
        "forwards_per_round": counts["forward"] / rounds,
        "derivatives_per_round": counts["backward"] / rounds,
    }
    if method == "snap":
        found |= {"to_reach": PASSES, "verdict": verdict(max(counts.values()) / rounds <= PASSES)}
    return found


def in_process(what: str, chosen: argparse.Namespace) -> int:
    """Peak bytes of a process of its own."""
    command = [sys.executable, __file__, "--measured", what, "--threads", str(chosen.threads)]
    command += ["--batch", str(chosen.batch), "--pixels", str(chosen.pixels)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def peak(what: str, batch: int, pixels: int) -> int:
    """Train, score if asked, and say how far the process grew over what it held without a model."""
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    model, (x, y) = network(), examples(batch, pixels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    graph = None if what == "training" else demp.trace(model, (x[:2],))
    if what == "check":
        demp.methods.create(
            "early-crop-s", model, optimizer, example_inputs=(x,), total_steps=STEPS, batches=[(x, y)],
            loss_fn=F.cross_entropy, prune_by=1.0, epoch_steps=STEPS + 1, rounds=0,
        )  # fmt: skip
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    kind: gates.ScoringKind | None = next((kind for kind in gates.FORWARDS if kind == what), None)
    if graph is not None and kind is not None:
        scoring = gates.Scoring(kind=kind, batches=2)
        gates.scores(model, graph.dense, scoring, [(x, y)] * 2, F.cross_entropy)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    main()
