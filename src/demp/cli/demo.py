"""`demp demo`: a dense, a narrow and a shrinking network on the digits, side by side in one run."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from demp import recipes
from demp.errors import DempError
from demp.train.config import DENSE
from demp.train.loop import TrainResult, train
from demp.train.observer import Observer
from demp.train.seeds import generator

BUDGET = "flops=0.25"
"""What the narrow and the shrinking network may cost of the dense one."""
COLUMNS = ("dense", "narrow", "DemP")
ROUNDS = 5
"""Timings of each network, taken in turns; their median counts."""
BATCH = 512
PROBES = 64
FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
from demp.train import artifact
model, facts = artifact.load(sys.argv[1])
x = load_file(sys.argv[2])["x"]
with torch.no_grad():
    save_file({"y": model.to(memory_format=torch.contiguous_format).eval()(x)}, sys.argv[3])
"""
"""What the fresh process runs: load the artifact, answer the same images."""


def run_demo(
    out: Path, *, steps: int | None, seed: int, console: Console, view: Callable[[str], Observer]
) -> dict[str, Any]:
    """Train the networks, print one table, reload the pruned one in a fresh process.

    Raises:
        DempError: the network that was loaded again answers differently.
    """
    recipe = recipes.get("digits", steps=steps).merged({"seed": seed})
    results: dict[str, TrainResult] = {}
    for title in (DENSE, "narrow", "demp"):
        options = {} if title == DENSE else {"budget": BUDGET}
        config = recipe.merged({"method": {"name": title, "options": options}, "out": str(out / title)})
        results[title] = train(config, observers=[view(f"{title:<6}")])
    speeds = images_per_second([result.model for result in results.values()], (1, 8, 8))
    for result, speed in zip(results.values(), speeds, strict=True):
        result.summary["inference_images_per_s"] = speed
    pruned = results["demp"]
    difference = reload_difference(pruned.model, out)
    console.print(comparison([result.summary for result in results.values()]))
    console.print(
        f"narrow: the same network with all widths scaled to the same budget ({BUDGET}), trained from scratch"
    )
    console.print(
        f"{out / 'demp' / 'model'} loaded in a fresh process: largest difference of its outputs {difference:g}"
    )
    if difference != 0:
        raise DempError("the reloaded network answers differently; please report this")
    return {
        "out": str(out),
        **{title: result.summary for title, result in results.items()},
        "reload_difference": difference,
    }


def comparison(summaries: Sequence[dict[str, Any]]) -> Table:
    """The table that the demo ends with, a column for each of ``COLUMNS``; every number was measured in this run."""
    table = Table(title="measured in this run", title_justify="left")
    for column in ("", *COLUMNS, "DemP over dense"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    rows: list[tuple[str, str, str]] = [
        ("neurons", "neurons", "{:,}"),
        ("parameters", "parameters", "{:,}"),
        ("FLOPs per image", "flops", "{:,}"),
        ("training time, s", "train_seconds", "{:.1f}"),
        ("training step at end, ms", "step_ms_at_end", "{:.2f}"),
        ("training images/s at end", "images_per_s_at_end", "{:,.0f}"),
        ("inference images/s", "inference_images_per_s", "{:,.0f}"),
        ("file size, kB", "file_kb", "{:,.0f}"),
    ]
    sides = [{**s, "file_kb": s["file_bytes"] / 1000} for s in summaries]
    gain = 100 * (sides[-1]["eval/top1"] - sides[0]["eval/top1"])
    table.add_row("test accuracy, %", *(f"{100 * side['eval/top1']:.2f}" for side in sides), f"{gain:+.2f}")
    for label, name, form in rows:
        values = [side[name] for side in sides]
        table.add_row(label, *map(form.format, values), f"{values[-1] / values[0]:.2f}")
    return table


@torch.no_grad()
def images_per_second(models: list[nn.Module], shape: tuple[int, ...]) -> list[float]:
    """Speed of inference of each model; they take turns, so that both meet the same machine."""
    device = next(models[0].parameters()).device
    x = torch.randn(BATCH, *shape, generator=generator("cpu", 0, "speed")).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    rounds = [[_seconds(model.eval(), x) for model in models] for _ in range(ROUNDS)]
    return [BATCH / statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def _seconds(model: nn.Module, x: Tensor) -> float:
    began = time.perf_counter()
    model(x).sum().item()
    return time.perf_counter() - began


@torch.no_grad()
def reload_difference(model: nn.Module, out: Path) -> float:
    """Largest difference between the outputs of ``model`` and of its artifact in a new process.

    Raises:
        DempError: it does not load there.
    """
    from safetensors.torch import load_file, save_file

    asked, answered = out / "asked.safetensors", out / "answered.safetensors"
    x = torch.randn(PROBES, 1, 8, 8, generator=generator("cpu", 0, "reload"))
    save_file({"x": x}, asked)
    command = [sys.executable, "-c", FRESH, str(out / "demp" / "model"), str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DempError(f"the saved network did not load in a fresh process: {done.stderr.strip()}")
    expected = model.cpu().to(memory_format=torch.contiguous_format).eval()(x)  # pyright: ignore[reportCallIssue]
    difference = (expected - load_file(answered)["y"]).abs().max().item()
    asked.unlink()
    answered.unlink()
    return difference
