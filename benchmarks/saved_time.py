"""What removed neurons save: the step of a cut network over that of the dense one.

    .venv/bin/python benchmarks/saved_time.py

ResNet-18 for CIFAR-10, channels last, with every layer cut at random to a share of its neurons; widths are channels in
the stem. ``multiple`` keeps widths that kernels may like better (`DemPConfig.multiple`). Beside each ratio stands that
of the FLOPs.
"""

import torch
from torch.nn import functional as F

import demp
from common import Ratio, arguments, in_pairs, parsed, show
from demp.train.models import resnet18

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure every width, share and multiple."""
    parser = arguments(
        __doc__,
        widths={"nargs": "+", "type": int, "default": [16, 64], "help": "channels in the stem of the dense network"},
        kept={"nargs": "+", "type": float, "default": [0.7, 0.5, 0.3], "help": "share of each layer that stays"},
        multiples={"nargs": "+", "type": int, "default": [1, 8], "help": "each width is rounded up to one of these"},
        precision={"choices": list(PRECISIONS), "default": "bf16"},
        pairs={"type": int, "default": 7},
        batch={"type": int, "default": 64},
    )
    chosen = parsed(parser)
    results = [
        measure(width, kept, multiple, chosen.precision, chosen.batch, chosen.pairs)
        for width in chosen.widths
        for kept in chosen.kept
        for multiple in chosen.multiples
    ]
    show(results, chosen.json)


def measure(width: int, kept: float, multiple: int, precision: str, batch: int, pairs: int) -> Ratio:
    """Training steps of the dense network and of one that is cut."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    dense, cut = (resnet18(width=width / 64).to(memory_format=torch.channels_last) for _ in range(2))  # pyright: ignore[reportCallIssue]
    graph = demp.trace(cut, (x[:2],))
    dead = {}
    for layer in graph.layers:
        stays = min(layer.width, -(-round(kept * layer.width) // multiple) * multiple)
        dead[layer.name] = torch.randperm(layer.width)[stays:].tolist()
    report = demp.cut(cut, dead, example_inputs=(x[:2],), exact=False, graph=graph)
    optimizers = {model: torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9) for model in (dense, cut)}

    def step(model: torch.nn.Module) -> None:
        optimizers[model].zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=PRECISIONS[precision], enabled=precision != "fp32"):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizers[model].step()

    name = f"ResNet-18, width {width}, {kept:g} of each layer kept, multiples of {multiple}, {precision}"
    flops = round(report.flops_after / report.flops_before, 3)
    return in_pairs(name, lambda: step(dense), lambda: step(cut), pairs=pairs, warmup=2, flops=flops)


if __name__ == "__main__":
    main()
