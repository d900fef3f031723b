"""A death check over a plain forward of the same images: what it costs to watch.

    .venv/bin/python benchmarks/check_time.py

ResNet-18 for CIFAR-10, 512 images in evaluation mode, single precision; the widths are channels in the stem, and
odd ones are what cuts leave behind. To reach: 1.25.
"""

import torch

import demp
from common import Ratio, arguments, in_pairs, parsed, show
from demp.train.models import resnet18

LIMIT = 1.25
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Measure every width and memory layout."""
    parser = arguments(
        __doc__,
        widths={"nargs": "+", "type": int, "default": [16, 27, 64], "help": "channels in the stem"},
        layouts={"nargs": "+", "choices": list(LAYOUTS), "default": list(LAYOUTS)},
        pairs={"type": int, "default": 7},
        images={"type": int, "default": 512},
    )
    chosen = parsed(parser)
    results = [
        measure(width, layout, chosen.images, chosen.pairs) for width in chosen.widths for layout in chosen.layouts
    ]
    show(results, chosen.json)


def measure(width: int, layout: str, images: int, pairs: int) -> Ratio:
    """One network, watched and not."""
    torch.manual_seed(0)
    model = resnet18(width=width / 64).eval().to(memory_format=LAYOUTS[layout])  # pyright: ignore[reportCallIssue]
    x = torch.randn(images, 3, 32, 32).contiguous(memory_format=LAYOUTS[layout])
    graph = demp.trace(model, (x[:2],))

    def plain() -> None:
        with torch.no_grad():
            model(x)

    name = f"a check of ResNet-18, width {width}, {layout}"
    return in_pairs(name, plain, lambda: demp.alive(model, [(x,)], graph=graph), pairs=pairs, warmup=1, limit=LIMIT)


if __name__ == "__main__":
    main()
