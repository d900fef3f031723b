"""Training time of a whole run on a budget over a dense one: attaching, checks and cuts included.

    DEMP_DATA=FOLDER .venv/bin/python benchmarks/total_time.py --width 0.25 --budgets 0.4 0.2

ResNet-18 on CIFAR-10, batches of 128, AdamW, defaults of ``demp.DemP``; both networks learn in turns of one step from
the same batches. To reach: 0.8 at 0.4 of the FLOPs and 0.65 at 0.2 with a quarter of the width; 0.6 and 0.4 with all.
"""

import logging

import torch

import demp
from common import Ratio, arguments, parsed, show
from demp.train.data import Data
from demp.train.models import resnet18
from demp.train.parts import DataConfig
from steps import whole_run

LIMITS = {(0.25, 0.4): 0.8, (0.25, 0.2): 0.65, (1.0, 0.4): 0.6, (1.0, 0.2): 0.4}
"""(Width over the paper's, budget): the largest ratio that reaches the goal."""
BATCH = 128


def main() -> None:
    """Measure every budget at one width."""
    parser = arguments(
        __doc__,
        width={"type": float, "default": 0.25, "help": "channels over those of the paper's ResNet-18"},
        budgets={"nargs": "+", "type": float, "default": [0.4, 0.2]},
        steps={"type": int, "default": 300, "help": "steps of a run"},
        data={"default": "cifar10"},
        pairs={"type": int, "default": 1},
    )
    chosen = parsed(parser)
    logging.getLogger("demp").setLevel(logging.ERROR)
    data = Data(DataConfig(name=chosen.data), batch_size=BATCH, seed=0, device="cpu")
    show([measure(data, chosen.width, budget, chosen.steps, chosen.pairs) for budget in chosen.budgets], chosen.json)


def measure(data: Data, width: float, budget: float, steps: int, pairs: int) -> Ratio:
    """Whole runs at one budget, one seed each, and the share of the FLOPs that each leaves."""
    plain, ours, left = [], [], []
    for seed in range(pairs):
        torch.manual_seed(seed)
        model = resnet18(width=width)
        batches = data.train_batches(0, steps)
        dense, shrunk, pruner = whole_run(model, batches, steps, budget=demp.Budget(flops=budget))
        plain.append(dense)
        ours.append(shrunk)
        before, after = pruner.summary().flops
        left.append(round(after / before, 3))
    notes = {"flops": ", ".join(map(str, left))}
    name = f"ResNet-18, width {round(64 * width)}, budget {budget:g}, {steps} steps"
    return Ratio(name, plain, ours, limit=LIMITS.get((width, budget)), notes=notes)


if __name__ == "__main__":
    main()
