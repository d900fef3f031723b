"""Defaults in eight ordinary set-ups: a budget, and nothing else, beside what a user would do instead.

    DEMP_DATA=FOLDER python benchmarks/ordinary.py --out runs/ordinary
    DEMP_DATA=FOLDER python benchmarks/ordinary.py --networks vit-imagenette --optimizers adamw --budgets 0.7 0.5

Each set-up is a `demp compare` in a folder of its own: dense, DemP, a narrow network from scratch for as many steps and
for as many training FLOPs, and the twin of DemP's final shapes; accuracy on a tenth of the training images that is held
out. Finished runs are not repeated; the same command goes on, and always prints the table.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common import arguments
from demp.experiments.sweep import Store

MNIST = "--data mnist --batch-size 128"
CIFAR = "--data cifar10 --set data.image_size=16 --batch-size 64"
IMAGENETTE = (
    "--data imagenette --set data.image_size=64 --set data.augment.crop=resize-pad --set data.augment.flip=true"
)
VIT = (
    "--model vit_b_16 --set model.options.patch={patch} --set model.options.depth=4 --set model.options.dim=96 "
    "--set model.options.heads=6"
)
NETWORKS = {
    "mlp": f"--model mlp {MNIST} --steps 500",
    "mlp-norm": f"--model ordinary:perceptron {MNIST} --steps 500",
    "resnet18": f"--model resnet18 --width 0.125 {CIFAR} --steps 1500",
    "vit": f"{VIT.format(patch=7)} {MNIST} --steps 1000",
}
LARGER = {"vit-imagenette": f"{VIT.format(patch=8)} {IMAGENETTE} --batch-size 64 --steps 1500"}
"""Run when they are named."""
RATES = {"adamw": 1e-3, "sgdm": 0.05}
SHARED = "--methods demp --twin demp --longer demp --precision fp32 --set data.validation=0.1"


def perceptron(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two hidden layers with batch norm."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(in_channels * image_size**2, 128), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()),
        nn.Linear(128, num_classes),
    )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = arguments(
        __doc__,
        out={"type": Path, "default": Path("runs/ordinary")},
        networks={"nargs": "+", "choices": [*NETWORKS, *LARGER], "default": list(NETWORKS)},
        optimizers={"nargs": "+", "choices": list(RATES), "default": list(RATES)},
        budgets={"nargs": "+", "default": ["0.5", "0.4"], "help": "shares of the dense FLOPs"},
        seeds={"type": int, "default": 2},
        table={"action": "store_true", "help": "only print the table of what is there"},
    )
    chosen = parser.parse_args()
    for network in chosen.networks:
        for optimizer in chosen.optimizers:
            out = chosen.out / f"{network}-{optimizer}"
            if not chosen.table:
                run(network, optimizer, chosen.budgets, chosen.seeds, out.absolute())
            for row in rows(f"{network}, {optimizer}", Store(out).records()):
                print(row, flush=True)


def run(network: str, optimizer: str, budgets: Sequence[str], seeds: int, out: Path) -> None:
    """One `demp compare`."""
    options = f"{(NETWORKS | LARGER)[network]} --optimizer {optimizer} --lr {RATES[optimizer]} {SHARED} --seeds {seeds}"
    command = [sys.executable, "-m", "demp", "compare", *options.split(), "--out", str(out)]
    for budget in budgets:
        command += ["--budget", f"flops={budget}"]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)


def rows(title: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """One row of Markdown for each kind of run: accuracy of each seed in %, then medians over dense."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        kinds[record["method"], json.dumps(record["labels"]["setting"], sort_keys=True)].append(record)
    return [f"| {title} | {method} | {setting} | {numbers(of)} |" for (method, setting), of in kinds.items()]


def numbers(records: Sequence[dict[str, Any]]) -> str:
    """Accuracies; FLOPs, parameters and training FLOPs over dense."""
    shares = [
        statistics.median(record[name] / record[f"{name}_dense"] for record in records)
        for name in ("flops", "parameters", "train_flops")
    ]
    scores = ", ".join(f"{100 * record['eval/top1']:.2f}" for record in records)
    return " | ".join([scores, *(f"{share:.3f}" for share in shares)])


if __name__ == "__main__":
    main()
