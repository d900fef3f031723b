"""The training step with DemP attached over the plain step, between two cuts: penalty and noise on, nobody watches.

    .venv/bin/python benchmarks/step_overhead.py

ResNet-18 for CIFAR-10 with 16 and 64 channels in the stem, batch 128, single precision, channels last. To reach: 1.03.
"""

import copy

import torch

import demp
from common import Ratio, arguments, in_pairs, parsed, show
from demp.train.models import resnet18
from steps import OPTIMIZERS, train_step

LIMIT = 1.03
STEPS, PERIOD, AT = 9000, 4500, 2500
"""A run in which step ``AT`` is near the peak of strength and noise, and far from a check."""


def main() -> None:
    """Measure every width and optimizer."""
    parser = arguments(
        __doc__,
        widths={"nargs": "+", "type": int, "default": [16, 64], "help": "channels in the stem"},
        optimizers={"nargs": "+", "choices": list(OPTIMIZERS), "default": ["adam", "sgdm"]},
        pairs={"type": int, "default": 15},
        batch={"type": int, "default": 128},
    )
    chosen = parsed(parser)
    results = [
        measure(width, optimizer, chosen.batch, chosen.pairs)
        for width in chosen.widths
        for optimizer in chosen.optimizers
    ]
    show(results, chosen.json)


def measure(width: int, optimizer: str, batch: int, pairs: int) -> Ratio:
    """One network and its copy with the pruner attached."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    plain = resnet18(width=width / 64).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ours = copy.deepcopy(plain)
    plain_optimizer, our_optimizer = (OPTIMIZERS[optimizer](model.parameters()) for model in (plain, ours))
    pruner = demp.DemP(ours, our_optimizer, example_inputs=(x[:2],), total_steps=STEPS, period=PERIOD)
    pruner.step = AT
    result = in_pairs(
        f"ResNet-18, width {width}, {optimizer}",
        lambda: train_step(plain, plain_optimizer, x, y),
        lambda: train_step(ours, our_optimizer, x, y),
        pairs=pairs,
        limit=LIMIT,
    )
    metrics = pruner.metrics()
    assert metrics["demp/strength"] > 0 and metrics["demp/noise_std"] > 0 and not pruner.history
    pruner.detach()
    return result


if __name__ == "__main__":
    main()
