"""A death check over a plain forward of the same images: what it costs to watch.

    .venv/bin/python benchmarks/check_time.py

ResNet-18 for CIFAR-10, 512 images in evaluation mode, single precision; the widths are channels in the stem, and
odd ones are what cuts leave behind. ``--criteria saturated`` takes the deviation of every neuron as well, which the
criterion of that name needs. To reach: 1.25.
"""

from itertools import product

import torch

import demp
from common import Ratio, arguments, in_pairs, parsed, show
from demp.activity.criteria import CriterionKind
from demp.train.models import resnet18

LIMIT = 1.25
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Measure every width and memory layout."""
    parser = arguments(
        __doc__,
        widths={"nargs": "+", "type": int, "default": [16, 27, 64], "help": "channels in the stem"},
        layouts={"nargs": "+", "choices": list(LAYOUTS), "default": list(LAYOUTS)},
        criteria={"nargs": "+", "choices": ["auto", "saturated"], "default": ["auto", "saturated"]},
        pairs={"type": int, "default": 7},
        images={"type": int, "default": 512},
    )
    chosen = parsed(parser)
    cases = product(chosen.widths, chosen.layouts, chosen.criteria)
    results = [measure(*case, chosen.images, chosen.pairs) for case in cases]
    show(results, chosen.json)


def measure(width: int, layout: str, criterion: CriterionKind, images: int, pairs: int) -> Ratio:
    """One network, watched and not."""
    torch.manual_seed(0)
    model = resnet18(width=width / 64).eval().to(memory_format=LAYOUTS[layout])  # pyright: ignore[reportCallIssue]
    x = torch.randn(images, 3, 32, 32).contiguous(memory_format=LAYOUTS[layout])
    graph = demp.trace(model, (x[:2],))

    def plain() -> None:
        with torch.no_grad():
            model(x)

    def check() -> None:
        demp.alive(model, [(x,)], graph=graph, criterion=criterion)

    name = f"a check of ResNet-18, width {width}, {layout}, {criterion}"
    return in_pairs(name, plain, check, pairs=pairs, warmup=1, limit=LIMIT)


if __name__ == "__main__":
    main()
