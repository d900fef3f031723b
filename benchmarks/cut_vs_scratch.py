"""A cut network against the same architecture built from scratch at those widths: training and inference step.

    .venv/bin/python benchmarks/cut_vs_scratch.py

ResNet-18 for CIFAR-10, batch 128, single precision. About half of the neurons of every layer are made dead, then
really cut with their Adam state; the other network holds freshly allocated tensors of the same shapes and values.
To reach: 1.05.
"""

import torch
from torch import nn

import demp
from common import Ratio, arguments, dying, in_pairs, parsed, show
from demp.graph.joins import model_joins, set_joins
from demp.train.models import resnet18
from steps import infer_step, train_step

LIMIT = 1.05
SHARE = 0.5
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Measure both layouts."""
    parser = arguments(
        __doc__,
        widths={"nargs": "+", "type": int, "default": [64], "help": "channels in the stem of the dense network"},
        layouts={"nargs": "+", "choices": list(LAYOUTS), "default": list(LAYOUTS)},
        pairs={"type": int, "default": 15},
        batch={"type": int, "default": 128},
    )
    chosen = parsed(parser)
    results = []
    for width in chosen.widths:
        for layout in chosen.layouts:
            results += measure(width, layout, chosen.batch, chosen.pairs)
    show(results, chosen.json)


def measure(width: int, layout: str, batch: int, pairs: int) -> list[Ratio]:
    """Training and inference step of both networks."""
    torch.manual_seed(0)
    memory_format = LAYOUTS[layout]
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=memory_format)
    y = torch.randint(10, (batch,))
    cut = resnet18(width=width / 64).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(cut.parameters(), lr=1e-4)

    train_step(cut, optimizer, x, y)
    optimizer.zero_grad(set_to_none=True)
    dead = dying(cut, demp.trace(cut, (x[:2],)), SHARE)
    report = demp.cut(cut, dead, example_inputs=(x[:16],), optimizer=optimizer)
    scratch = from_scratch(resnet18(width=width / 64), cut, memory_format)
    fresh = torch.optim.Adam(scratch.parameters(), lr=1e-4)
    name = f"ResNet-18, width {width}, {layout}, {report.neurons_before} -> {report.neurons_after} neurons"
    train = in_pairs(
        f"{name}, training step",
        lambda: train_step(scratch, fresh, x, y),
        lambda: train_step(cut, optimizer, x, y),
        pairs=pairs,
        limit=LIMIT,
    )
    cut.eval()
    scratch.eval()
    infer = in_pairs(
        f"{name}, inference",
        lambda: infer_step(scratch, x),
        lambda: infer_step(cut, x),
        pairs=2 * pairs,
        limit=LIMIT,
        strides_differ=strides_that_differ(cut, scratch),
    )
    return [train, infer]


def from_scratch(dense: nn.Module, like: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """``dense`` with freshly allocated tensors of the shapes and values of ``like``, and its joins."""
    wanted = dict(like.state_dict())
    for path, module in dense.named_modules():
        for name in (*module._parameters, *module._buffers):
            value = wanted.get(f"{path}.{name}" if path else name)
            if value is None:
                continue
            layout = memory_format if value.dim() == 4 else torch.contiguous_format
            new = torch.empty(value.shape, dtype=value.dtype, memory_format=layout).copy_(value)
            setattr(module, name, nn.Parameter(new) if name in module._parameters else new)
    for path, plans in model_joins(like).items():
        set_joins(dense.get_submodule(path), plans)
    return dense


def strides_that_differ(cut: nn.Module, scratch: nn.Module) -> int:
    """Tensors whose layout in memory is not the ordinary one."""
    theirs = dict(scratch.named_parameters())
    return sum(p.stride() != theirs[name].stride() for name, p in cut.named_parameters())


if __name__ == "__main__":
    main()
