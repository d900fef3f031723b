"""The README's first block as printed, on CIFAR-10: its model and data replaced, every other line as it stands.

    DEMP_DATA=FOLDER .venv/bin/python benchmarks/readme_on_cifar.py --seeds 1

ResNet-18 with 8 channels in the stem on images shrunk to 16 pixels; a tenth of the training images is held out and
counted at the end. Dense and narrow (all widths scaled to the same FLOPs) run the same lines without the pruner.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import demp
from common import arguments, machine, parsed
from demp.train.data import Data
from demp.train.models import resnet18
from demp.train.parts import DataConfig

PRINTED = Path(__file__).parent.parent / "tests" / "docs" / "first_example.py"
WIDTH = 8 / 64
BUDGET = 0.4
PRUNER = re.compile(r"^pruner = .*\n", re.M)


def lines(*, pruned: bool) -> str:
    """The block from where the model is made on; without the pruner up to the end of the loop."""
    block = subprocess.run([sys.executable, PRINTED], check=True, capture_output=True, text=True).stdout
    _, start, rest = block.partition("model, criterion, epochs")
    code = start + rest
    assert start and f"flops={BUDGET}" in code and PRUNER.search(code), "the README's first block is another one"
    return code if pruned else PRUNER.sub("", code.partition("print(pruner.finish())")[0])


def images(name: str, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out images with their labels, in memory."""
    data = Data(DataConfig(name=name, image_size=side, validation=0.1), batch_size=64, seed=0, device="cpu")
    order = torch.Generator().manual_seed(0)
    return together(data.drawn(len(data.train), order)), together(data.test.batches(512))


def together(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All images of some batches, and all labels."""
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def run(build_model: Callable[[], nn.Module], train: TensorDataset, seed: int, *, pruned: bool) -> dict[str, Any]:
    """Run the lines; return the names that they leave."""
    torch.manual_seed(seed)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    names = {
        "torch": torch,
        "nn": nn,
        "demp": demp,
        "build_model": build_model,
        "loader": loader,
        "x": train.tensors[0],
    }
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        exec(compile(lines(pruned=pruned), "README.md", "exec"), names)
    return names


def narrow_width(x: Tensor) -> float:
    """The largest width, in channels of the stem over 64, at which the network has no more FLOPs than the budget."""
    dense = demp.cost(resnet18(width=WIDTH), (x,)).flops
    widths = [channels / 640 for channels in range(10, 80)]
    return max(w for w in widths if demp.cost(resnet18(width=w), (x,)).flops <= BUDGET * dense)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers in %."""
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in x.split(512)])
    return 100 * float((found == y).double().mean())


def main() -> None:
    """Dense, narrow and pruned, seed by seed."""
    parser = arguments(
        __doc__,
        seeds={"type": int, "default": 1},
        data={"default": "cifar10"},
        side={"type": int, "default": 16, "help": "pixels of an image's side"},
    )
    chosen = parsed(parser)
    (x, y), held_out = images(chosen.data, chosen.side)
    arms = (("dense", WIDTH, False), ("narrow", narrow_width(x[:1]), False), ("demp", WIDTH, True))
    for seed in range(chosen.seeds):
        for name, width, pruned in arms:
            model = run(partial(resnet18, width=width), TensorDataset(x, y), seed, pruned=pruned)["model"]
            cost, right = demp.cost(model, (x[:1],)), accuracy(model, *held_out)
            print(f"seed {seed}, {name}: {right:.2f} %, {cost.flops} FLOPs, {cost.parameters} parameters", flush=True)
    print(machine())


if __name__ == "__main__":
    main()
