"""How a cut grows with a model: a tenth of the neurons and heads of a Llama of more and more layers, with Adam's state.

    .venv/bin/python benchmarks/cut_scale.py

Real weights on the CPU in fp32 (12 bytes a parameter with the state: 6.5 GB at 8 layers). Surgery alone is the time in
which tensors are sliced, without the proof's forwards. Beside it stands what torch's `index_select` takes for tensors
of the same shapes in the same process: memory that a process takes for the first time is slow to come, and the deepest
model takes the most of it. To reach: time linear in the parameters of the blocks, that is, surgery over plain slicing
at most 1.2 times that of the depth before.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

import demp
from common import arguments, parsed, seconds, show, verdict
from trace_scale import Llama

SHARE = 0.1
LIMIT = 1.2


def main() -> None:
    """Measure every depth."""
    parser = arguments(
        __doc__,
        depths={"nargs": "+", "type": int, "default": [2, 4, 8], "help": "numbers of layers, at least two"},
        repeats={"type": int, "default": 3},
    )
    chosen = parsed(parser)
    found = [measure(depth, chosen.repeats) for depth in chosen.depths]
    growth = found[-1]["over_plain_slicing"] / found[-2]["over_plain_slicing"]
    found[-1]["growth_since_the_depth_before"] = round(growth, 2)
    found[-1]["to_reach"] = f"{LIMIT:g}: {verdict(growth <= LIMIT)}"
    show(found, chosen.json)


def measure(depth: int, repeats: int) -> dict[str, Any]:
    """Seconds of cuts of fresh models, each followed by plain slicing of tensors of the same shapes."""
    cuts = [cut(depth) for _ in range(repeats)]
    plain = [plain_slicing(resized) for _, _, resized in cuts]
    surgery, parameters = statistics.median(cut[1] for cut in cuts), sum(old.numel() for old, _ in cuts[0][2])
    return {
        "name": f"cut of Llama, {depth} layers",
        "parameters_of_blocks": parameters,
        "cut_s": round(statistics.median(cut[0] for cut in cuts), 3),
        "surgery_alone_s": round(surgery, 3),
        "ms_per_million": round(1e9 * surgery / parameters, 2),
        "over_plain_slicing": round(surgery / statistics.median(plain), 2),
    }


def cut(depth: int) -> tuple[float, float, list[tuple[torch.Size, torch.Size]]]:
    """One cut: its seconds, those of surgery alone, shapes of the blocks' parameters before and after."""
    torch.manual_seed(0)
    model, words = Llama(depth).eval(), torch.zeros(1, 16, dtype=torch.long)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    shapes = [parameter.shape for parameter in model.blocks.parameters()]  # no cut touches embedding and head
    graph = demp.trace(model, (words,))
    going = {layer.name: [*range(max(1, int(SHARE * layer.width)))] for layer in graph.layers}
    reports: list[demp.CutReport] = []
    options: dict[str, Any] = {"example_inputs": (words,), "optimizer": optimizer, "graph": graph, "exact": False}
    spent = seconds(lambda: reports.append(demp.cut(model, going, **options)))
    now = [parameter.shape for parameter in model.blocks.parameters()]
    return spent, reports[0].surgery_seconds, [*zip(shapes, now, strict=True)]


def plain_slicing(resized: Sequence[tuple[torch.Size, torch.Size]]) -> float:
    """Seconds of torch's own selection of as many rows or columns from tensors of these shapes, three of each.

    Three: a weight and Adam's two moments. Old and new tensors are alive together, as in a cut that can be undone.
    """
    jobs = []
    for old, new in resized:
        changed = [axis for axis, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
        jobs += [(torch.ones(old), axis, torch.arange(new[axis])) for axis in changed for _ in range(3)]
    made: list[torch.Tensor] = []
    return seconds(lambda: made.extend(tensor.index_select(axis, kept) for tensor, axis, kept in jobs))


if __name__ == "__main__":
    main()
