"""How demp.trace grows with a model: a Llama on meta, from four layers to about one billion parameters.

    .venv/bin/python benchmarks/trace_scale.py

Weights and example are on meta; every depth is traced in a process of its own, whose peak memory is the one reported
(that of a process that only imports is given beside it). To reach: 20 s and 2 GB at one billion parameters, and time
linear in the number of operations: seconds per layer of the deepest over those of the depth before.
"""

import json
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from common import arguments, parsed, seconds, show, verdict

WIDTH, HIDDEN, HEADS, WORDS = 2048, 5504, 16, 32000
DEPTHS = (4, 8, 16, 20)
"""The last has 1.14 billion parameters."""


class Norm(nn.Module):
    """RMSNorm as Llama writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """Attention with rotary positions, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(turned(q, turn), turned(k, turn), v).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions."""
    a, b = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-b, a], -1) * turn[1]


class Llama(nn.Module):
    """A decoder with ``depth`` layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(WORDS, WIDTH), Norm()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        angle = torch.outer(
            torch.arange(words.shape[1], device=x.device, dtype=x.dtype),
            torch.linspace(0, 1, WIDTH // HEADS, device=x.device, dtype=x.dtype),
        )
        turn = angle.cos(), angle.sin()
        for block in self.blocks:
            x = block(x, turn)
        return self.head(self.norm(x))


def main() -> None:
    """Measure, or be one of the processes that do."""
    parser = arguments(__doc__, once={"type": int, "default": -1, "help": "used by the benchmark itself: one depth"})
    chosen = parsed(parser)
    if chosen.once >= 0:
        print(json.dumps(once(chosen.once)))
        return
    found = [one_process(depth, chosen.threads) for depth in (0, *DEPTHS)]
    base, deepest = found[0]["peak_mb"], found[-1]
    for one in found[1:]:
        one["ms_per_layer"] = round(1e3 * one["seconds"] / one["layers"], 1)
    growth = deepest["ms_per_layer"] / found[-2]["ms_per_layer"]
    deepest["peak_mb_of_imports"] = base
    deepest["per_layer_over_the_depth_before"] = round(growth, 2)
    deepest["to_reach"] = f"20 s, 2000 MB: {verdict(deepest['seconds'] <= 20 and deepest['peak_mb'] <= 2000)}"
    show(found[1:], chosen.json)


def one_process(depth: int, threads: int) -> dict[str, Any]:
    """One depth, measured in a fresh process."""
    command = [sys.executable, __file__, "--once", str(depth), "--threads", str(threads)]
    return json.loads(subprocess.check_output(command, text=True))


def once(depth: int) -> dict[str, Any]:
    """Seconds of the first trace in this process, and its peak memory; depth 0 only imports."""
    found: dict[str, Any] = {"name": f"trace of Llama, {depth} layers", "layers": depth}
    if depth:
        with torch.device("meta"):
            model, words = Llama(depth), torch.zeros(1, 128, dtype=torch.long)
        found["parameters"] = sum(p.numel() for p in model.parameters())
        graphs: list[demp.NeuronGraph] = []
        found["seconds"] = round(seconds(lambda: graphs.append(demp.trace(model, (words,)))), 2)
        found["neurons"] = sum(int(layer.removable.sum()) for layer in graphs[0].layers)
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


if __name__ == "__main__":
    main()
