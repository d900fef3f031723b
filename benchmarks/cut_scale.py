"""How a cut grows with a model: a tenth of the neurons and heads of a Llama of more and more layers, with Adam's state.

    .venv/bin/python benchmarks/cut_scale.py

Real weights on the CPU in fp32 (12 bytes a parameter with the state: 6.5 GB at 8 layers). Surgery alone is the time in
which tensors are sliced, without the proof's forwards. To reach: time linear in the parameters of the blocks, that is,
milliseconds per million of the deepest at most 1.2 times those of the depth before.
"""

import statistics
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
    growth = found[-1]["ms_per_million"] / found[-2]["ms_per_million"]
    found[-1]["per_parameter_over_the_depth_before"] = round(growth, 2)
    found[-1]["to_reach"] = f"{LIMIT:g}: {verdict(growth <= LIMIT)}"
    show(found, chosen.json)


def measure(depth: int, repeats: int) -> dict[str, Any]:
    """Seconds of cuts of fresh models."""
    cuts = [cut(depth) for _ in range(repeats)]
    surgery, parameters = statistics.median(cut[1] for cut in cuts), cuts[0][2]
    return {
        "name": f"cut of Llama, {depth} layers",
        "parameters_of_blocks": parameters,
        "cut_s": round(statistics.median(cut[0] for cut in cuts), 3),
        "surgery_alone_s": round(surgery, 3),
        "ms_per_million": round(1e9 * surgery / parameters, 2),
    }


def cut(depth: int) -> tuple[float, float, int]:
    """One cut: its seconds, those of surgery alone, and the parameters that the blocks had."""
    torch.manual_seed(0)
    model, words = Llama(depth).eval(), torch.zeros(1, 16, dtype=torch.long)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    parameters = sum(parameter.numel() for parameter in model.blocks.parameters())  # no cut touches embedding and head
    graph = demp.trace(model, (words,))
    going = {layer.name: [*range(max(1, int(SHARE * layer.width)))] for layer in graph.layers}
    reports: list[demp.CutReport] = []
    options: dict[str, Any] = {"example_inputs": (words,), "optimizer": optimizer, "graph": graph, "exact": False}
    spent = seconds(lambda: reports.append(demp.cut(model, going, **options)))
    return spent, reports[0].surgery_seconds, parameters


if __name__ == "__main__":
    main()
