"""Processor time of a dense training step of each network of the studies at scale cpu, and the FLOPs per second of it.

``python benchmarks/study_steps.py --data FOLDER``: one thread; the seconds in `demp study list` rest on this.
"""

import argparse
import statistics
import time

import torch

from demp.experiments.studies.campaign import use_data
from demp.experiments.studies.costs import train_flops
from demp.experiments.studies.training import CPU, base
from demp.train.run import Run

WARM_UP = 2


def measured(network: str, steps: int) -> tuple[float, float]:
    """Median seconds of processor time of a step, and FLOPs per step."""
    config = base(network, "cpu").merged({"method": {"name": "dense"}, "device": "cpu"})
    run = Run(config)
    batches = run.data.train_batches(0, run.total_steps)
    taken = []
    for _ in range(WARM_UP + steps):
        x, y = next(batches)
        began = time.process_time()
        run.train_step(x, y)
        taken.append(time.process_time() - began)
    return statistics.median(taken[WARM_UP:]), train_flops(config.to_dict()) / config.steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="folder with cifar10 and imagenette")
    parser.add_argument("--networks", nargs="+", default=list(CPU), choices=list(CPU))
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    use_data(arguments.data)
    torch.set_num_threads(1)
    for network in arguments.networks:
        seconds, flops = measured(network, arguments.steps)
        print(f"{network}: {seconds:.3f} s per step, {flops / 1e9:.1f} GFLOP, {flops / seconds / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
