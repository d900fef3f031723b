"""A report over many long runs: how long it takes, how much memory, how large the page is.

    python benchmarks/report_scale.py [--runs 1000] [--points 10000] [--folder DIR]

Writes a sweep of that size (4 kB for ten points), then reports over it in a process of its own, twice. The numbers in
the runs are made up; their shape is that of real ones. Seeds of a setting share their metrics. To reach for the default
size: 20 s, 1 GB, a page of 3 MB.
"""

import argparse
import json
import math
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LAYERS = {
    f"layer{stage}.{block}.act{act}": 16 * 2**stage for stage in range(1, 5) for block in (0, 1) for act in (1, 2)
}
DENSE = {"neurons": sum(LAYERS.values()), "parameters": 2_797_034, "flops": 557_000_000}
METHODS = {"dense": [{}], "demp": [{"peak_strength": s} for s in (0.001, 0.002, 0.005, 0.01)]}
METHODS |= {
    name: [{"target_neuron_sparsity": t} for t in (0.3, 0.5, 0.7)] for name in ("snap", "early-crop-s", "random")
}
EVERY_TEST = 500
CUTS = 20


def write_sweep(folder: Path, runs: int, points: int) -> int:
    """A folder as a sweep leaves it; how many bytes it has."""
    draw = random.Random(0)
    plan = [(method, setting) for method, settings in METHODS.items() for setting in settings]
    (folder / "results").mkdir(parents=True)
    bodies: dict[str, str] = {}
    written = 0
    with (folder / "results" / "here-1.jsonl").open("w") as results:
        for index in range(runs):
            seed, (method, setting) = index // len(plan), plan[index % len(plan)]
            strength = (plan.index((method, setting)) % 4 + 1) / 5 if setting else 0.0
            of_setting = "-".join([method, *(f"{k}={v:g}" for k, v in setting.items())])
            name = f"{of_setting}-s{seed}"
            run = folder / "runs" / name
            run.mkdir(parents=True)
            if of_setting not in bodies:
                lines = [metrics(step, points, strength, draw) for step in range(1, points + 1)]
                bodies[of_setting] = "\n".join(lines) + "\n"
            (run / "metrics.jsonl").write_text(bodies[of_setting])
            (run / "cuts.jsonl").write_text("".join(cuts(points, strength)) if setting else "")
            config = f'steps = {points}\nbatch_size = 128\nseed = {seed}\n[method]\nname = "{method}"\n'
            (run / "config.toml").write_text(config)
            outcome = summary(method, seed, points, strength, draw)
            (run / "summary.json").write_text(json.dumps(outcome))
            labels = {"method": method, "setting": setting, "seed": seed}
            record = {"schema": 1, "name": name, "labels": labels, "status": "done", **outcome, "machine": "one"}
            results.write(json.dumps(record) + "\n")
            written += (run / "metrics.jsonl").stat().st_size
    return written


def metrics(step: int, points: int, strength: float, draw: random.Random) -> str:
    """A line of metrics."""
    done, phase = step / points, math.sin(math.pi * step / points)
    values: dict[str, Any] = {"step": step}
    if step % EVERY_TEST == 0:
        return json.dumps(values | {"split": "test", "eval/top1": 0.9 * done**0.1, "eval/loss": 0.4 / done**0.3})
    alive = DENSE["neurons"] * (1 - strength * min(1, 2 * done))
    values |= {"train/loss": 2.3 * math.exp(-3 * done) + 0.1 * draw.random(), "train/lr": 0.005 * (1 - done)}
    values |= {"demp/strength": 0.005 * strength * phase, "demp/noise_std": 0.0003 * phase}
    values |= {"prune/neurons_alive": round(alive), "prune/neuron_sparsity": 1 - alive / DENSE["neurons"]}
    values |= {"prune/cuts": 20 * done, "cost/parameters": DENSE["parameters"] * (1 - strength * done)}
    values |= {"cost/flops": DENSE["flops"] * (1 - strength * done), "dead/share": strength * phase * draw.random()}
    return json.dumps(values | {"time/seconds": 0.1 * step, "time/step_ms": 100 + draw.random()})


def cuts(points: int, strength: float) -> list[str]:
    """Its cuts."""
    lines = []
    for index in range(CUTS):
        before, after = (1 - strength * (index + more) / CUTS for more in (0, 1))
        layers = {name: {"before": int(w * before), "kept": int(w * after), "hash": "0"} for name, w in LAYERS.items()}
        record: dict[str, Any] = {"step": points * (index + 1) // CUTS, "removed": 1, "layers": layers, "seconds": 0.2}
        for name, dense in DENSE.items():
            record |= {f"{name}_before": int(dense * before), f"{name}_after": int(dense * after)}
        lines.append(json.dumps(record | {"judged": {"forwards": 1536}, "notes": []}) + "\n")
    return lines


def summary(method: str, seed: int, points: int, strength: float, draw: random.Random) -> dict[str, Any]:
    """How it ended."""
    left = 1 - strength
    outcome: dict[str, Any] = {"method": method, "seed": seed, "model": "resnet18", "data": "cifar10", "steps": points}
    outcome |= {"split": "test", "eval/top1": 0.93 - 0.1 * strength**2 + draw.gauss(0, 0.003)}
    for name, dense in DENSE.items():
        outcome |= {name: int(dense * left), f"{name}_dense": dense}
    outcome |= {"neuron_sparsity": strength, "weight_sparsity": strength, "masked_share": 0.0}
    cost = 384.0 * DENSE["flops"] * points
    outcome |= {"train_flops": cost * (1 - strength / 2), "train_flops_dense": cost, "scoring_flops": 0.0}
    return outcome | {"train_seconds": points * 0.1 * (1 - strength / 3), "step_ms_at_end": 100 * (1 - strength / 2)}


def measure(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of the report in a process of its own."""
    command = [sys.executable, "-m", "demp.cli", "report", str(folder), "-o", str(out)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--folder", default="", help="where to write the runs; kept, and used again if it is there")
    asked = parser.parse_args()
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="demp-report-"))
    sweep, page = folder / "sweep", folder / "report.html"
    try:
        if not sweep.is_dir():
            print(f"{write_sweep(sweep, asked.runs, asked.points) / 1e6:.0f} MB of metrics written")
        for turn in ("first", "second"):
            seconds, megabytes = measure(sweep, page)
            print(f"{turn} time: {seconds:.1f} s, {megabytes:.0f} MB, page of {page.stat().st_size / 1e6:.2f} MB")
    finally:
        if not asked.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
