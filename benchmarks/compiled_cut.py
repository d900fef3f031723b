"""A compiled network after a cut against a compiled one built from scratch at those widths: training and inference.

    .venv/bin/python benchmarks/compiled_cut.py

ResNet-18 for CIFAR-10, batch 128, single precision, torch.compile with its defaults. The network is compiled and
trains a step, about half of its neurons are made dead and really cut, and it goes on through the same compiled module;
the other network holds freshly allocated tensors of the same shapes and values and is compiled too. To reach: 1.05.
"""

import torch

import demp
from common import Ratio, arguments, dying, in_pairs, parsed, seconds, show
from cut_vs_scratch import LAYOUTS, from_scratch
from demp.train.models import resnet18
from steps import infer_step, train_step

LIMIT = 1.05
SHARE = 0.5


def main() -> None:
    """Measure every layout that was asked for."""
    parser = arguments(
        __doc__,
        width={"type": int, "default": 16, "help": "channels in the stem of the dense network"},
        layouts={"nargs": "+", "choices": list(LAYOUTS), "default": list(LAYOUTS)},
        pairs={"type": int, "default": 15},
        batch={"type": int, "default": 128},
    )
    chosen = parsed(parser)
    results = []
    for layout in chosen.layouts:
        results += measure(chosen.width, layout, chosen.batch, chosen.pairs)
    show(results, chosen.json)


def measure(width: int, layout: str, batch: int, pairs: int) -> list[Ratio]:
    """Training and inference step of both networks."""
    torch.manual_seed(0)
    torch.compiler.reset()
    memory_format = LAYOUTS[layout]
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=memory_format)
    y = torch.randint(10, (batch,))
    cut = resnet18(width=width / 64).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    cut.compile(isolate_recompiles=True)
    optimizer = torch.optim.Adam(cut.parameters(), lr=1e-4)

    train_step(cut, optimizer, x, y)
    optimizer.zero_grad(set_to_none=True)
    dead = dying(cut, demp.trace(cut, (x[:2],)), SHARE)
    report = demp.cut(cut, dead, example_inputs=(x[:16],), optimizer=optimizer)
    again = seconds(lambda: train_step(cut, optimizer, x, y))
    scratch = from_scratch(resnet18(width=width / 64), cut, memory_format)
    scratch.compile(isolate_recompiles=True)  # or it would run what was compiled for the other
    fresh = torch.optim.Adam(scratch.parameters(), lr=1e-4)
    once = seconds(lambda: train_step(scratch, fresh, x, y))
    name = f"ResNet-18, width {width}, {layout}, {report.neurons_before} -> {report.neurons_after} neurons, compiled"
    train = in_pairs(
        f"{name}, training step",
        lambda: train_step(scratch, fresh, x, y),
        lambda: train_step(cut, optimizer, x, y),
        pairs=pairs,
        limit=LIMIT,
        first_step_from_scratch_s=round(once, 1),
        first_step_after_the_cut_s=round(again, 1),
    )
    cut.eval()
    scratch.eval()
    infer = in_pairs(
        f"{name}, inference", lambda: infer_step(scratch, x), lambda: infer_step(cut, x), pairs=2 * pairs, limit=LIMIT
    )
    return [train, infer]


if __name__ == "__main__":
    main()
