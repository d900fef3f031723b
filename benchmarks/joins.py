"""Per-block joins over a cut that couples each stage: inference and training step of the paper's ResNet-50.

    .venv/bin/python benchmarks/joins.py
    .venv/bin/python benchmarks/joins.py --forms     # slices against an index add, by the number of runs

A share of the neurons is dead. Half of the dead channels of a stage are dead after every block, the others after one.
Both networks lose the same dead neurons inside their blocks; the coupled one loses a channel of a stage only where all
blocks agree. To reach: below 1 in both layouts.
"""

import copy
import random
from functools import partial
from typing import Any

import torch
from torch import Tensor

import demp
from common import Ratio, arguments, in_pairs, parsed, show
from demp.graph import NeuronGraph
from demp.graph.joins import JoinPlan, join, model_joins
from demp.train.models import resnet50
from steps import infer_step, train_step

LIMIT = 1.0
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Measure every share in both layouts, or the forms of a join."""
    parser = arguments(
        __doc__,
        shares={"nargs": "+", "type": float, "default": [0.5, 0.8], "help": "share of dead neurons"},
        layouts={"nargs": "+", "choices": list(LAYOUTS), "default": list(LAYOUTS)},
        pairs={"type": int, "default": 9},
        batch={"type": int, "default": 4},
        size={"type": int, "default": 224},
        forms={"action": "store_true", "help": "compare the forms of one join instead"},
    )
    chosen = parsed(parser)
    results = []
    for layout in chosen.layouts:
        if chosen.forms:
            results += forms(layout, chosen.pairs)
            continue
        for share in chosen.shares:
            results += measure(share, layout, chosen.batch, chosen.size, chosen.pairs)
    show(results, chosen.json)


def measure(share: float, layout: str, batch: int, size: int, pairs: int) -> list[Ratio]:
    """Inference and training step of both networks."""
    torch.manual_seed(0)
    memory_format = LAYOUTS[layout]
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=memory_format)
    y = torch.randint(10, (batch,))
    coupled = resnet50(num_classes=10).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    joined = copy.deepcopy(coupled)
    for model, joins in ((coupled, False), (joined, True)):
        graph = demp.trace(model, (x[:1],), joins=joins)
        dead = half_shared(graph, share)
        demp.cut(model, dead, example_inputs=(x[:1],), graph=graph, exact=False, verify=False)
    kinds = [plan.kind for sums in model_joins(joined).values() for plan in sums.values()]
    notes = {
        "parameters": sum(p.numel() for p in joined.parameters()) / sum(p.numel() for p in coupled.parameters()),
        "flops": demp.cost(joined, (x[:1],)).flops / demp.cost(coupled, (x[:1],)).flops,
        "slices": kinds.count("slice"),
        "indices": kinds.count("index"),
    }

    name = f"ResNet-50, {share:.0%} dead, {layout}"
    slow, fast = (torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9) for model in (coupled, joined))
    train = in_pairs(
        f"{name}, training step",
        lambda: train_step(coupled, slow, x, y),
        lambda: train_step(joined, fast, x, y),
        pairs=pairs,
        limit=LIMIT,
        **notes,
    )
    coupled.eval()
    joined.eval()
    infer = in_pairs(
        f"{name}, inference",
        lambda: infer_step(coupled, x),
        lambda: infer_step(joined, x),
        pairs=pairs,
        limit=LIMIT,
        **notes,
    )
    return [train, infer]


def half_shared(graph: NeuronGraph, share: float) -> dict[str, list[int]]:
    """Dead neurons per layer: inside blocks at random; of a stage's channels, half the same after every block."""
    rng = random.Random(0)
    dead: dict[str, list[int]] = {}
    shared: dict[tuple[str, int], list[int]] = {}
    for layer in graph.layers:
        everyone = range(layer.width)
        if not layer.name.endswith("act3"):
            dead[layer.name] = rng.sample(everyone, round(share * layer.width))
            continue
        stage = (layer.name.split(".")[0], layer.width)
        same = shared.setdefault(stage, rng.sample(everyone, round(share * layer.width / 2)))
        others = sorted(set(everyone) - set(same))
        dead[layer.name] = sorted(same + rng.sample(others, round(share * layer.width) - len(same)))
    return dead


def forms(layout: str, pairs: int) -> list[Ratio]:
    """One join of half of the channels in 1, 2, 4 … runs: slices over an index add, forward and backward."""
    found = []
    for batch, channels, size in ((16, 64, 56), (16, 256, 28), (64, 512, 7), (128, 32, 16)):
        shape = (batch, channels, size, size)
        branch, stream, gradient = (torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]) for _ in range(3))
        for count in (1, 4, 16, 32):
            length = channels // (2 * count)
            if not length:
                continue
            runs = tuple((2 * length * i, 2 * length * i, length) for i in range(count))
            sides = (branch, stream, gradient)
            plan = JoinPlan(1, 1, (channels, channels), runs)
            name = f"join of {shape} in {count} runs, {layout}: slices over index add"
            slices, index = partial(both_ways, *sides, plan, None), partial(both_ways, *sides, plan, plan.indices())
            found.append(in_pairs(name, index, slices, pairs=pairs))
    return found


def both_ways(branch: Tensor, stream: Tensor, gradient: Tensor, plan: JoinPlan, indices: Any) -> None:
    """One join and its backward."""
    a, b = (side.detach().requires_grad_() for side in (branch, stream))
    join(a * 1.0, b, plan, True, indices).backward(gradient)


if __name__ == "__main__":
    main()
