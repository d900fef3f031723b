"""The training step with a mask method attached over the plain step, between two updates of the masks.

    .venv/bin/python benchmarks/mask_step.py

ResNet-18 for CIFAR-10 with 16 and 64 channels in the stem, batch 128, single precision, channels last; 80 % of the
weights are masked. With ``--update`` also the step on which masks change. To reach between updates: 1.10.
"""

import copy

import torch

import demp
from common import Ratio, arguments, in_pairs, parsed, show
from demp.train.models import resnet18
from steps import OPTIMIZERS, train_step

LIMIT = 1.10
STEPS = 9000
METHODS = ("magnitude", "saliency", "set", "rigl")


def main() -> None:
    """Measure every width, method and optimizer."""
    parser = arguments(
        __doc__,
        widths={"nargs": "+", "type": int, "default": [16, 64], "help": "channels in the stem"},
        methods={"nargs": "+", "choices": METHODS, "default": ["magnitude", "rigl"]},
        optimizers={"nargs": "+", "choices": list(OPTIMIZERS), "default": ["adam", "sgdm"]},
        pairs={"type": int, "default": 15},
        batch={"type": int, "default": 128},
        update={"action": "store_true", "help": "also the step on which masks change"},
    )
    chosen = parsed(parser)
    results = []
    for width in chosen.widths:
        for method in chosen.methods:
            for optimizer in chosen.optimizers:
                for update in (False, True) if chosen.update else (False,):
                    results.append(measure(width, method, optimizer, chosen.batch, chosen.pairs, update))
    show(results, chosen.json)


def measure(width: int, method: str, optimizer: str, batch: int, pairs: int, update: bool) -> Ratio:
    """One network and its masked copy; ``update``: masks change in every step."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    plain = resnet18(width=width / 64).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ours = copy.deepcopy(plain)
    plain_optimizer, our_optimizer = (OPTIMIZERS[optimizer](model.parameters()) for model in (plain, ours))
    every, until = (1, 1.0) if update else (STEPS // 2, 0.5)
    pruner = demp.methods.create(
        method, ours, our_optimizer, example_inputs=(x[:2],), total_steps=STEPS, mask_every=every, mask_until=until
    )
    pruner.step = STEPS // 2
    train_step(ours, our_optimizer, x, y)
    result = in_pairs(
        f"ResNet-18, width {width}, {method}, {optimizer}, {'updates' if update else 'between updates'}",
        lambda: train_step(plain, plain_optimizer, x, y),
        lambda: train_step(ours, our_optimizer, x, y),
        pairs=pairs,
        limit=None if update else LIMIT,
        weights_masked=round(pruner.masks.masked() / sum(p.numel() for p in ours.parameters()), 3),
    )
    assert pruner.masks.masked() > 0 and pruner.method.masks_due(pruner.step) == update
    pruner.detach()
    return result


if __name__ == "__main__":
    main()
