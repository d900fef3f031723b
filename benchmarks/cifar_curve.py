"""CIFAR-10, ResNet-18 with 16 channels in the stem: accuracy against sparsity and time, dense training beside it.

For each optimizer a dense run and one run of DemP per strength, all with the same weights at the start and the same
images in the same order. Each run writes a line to the results file when it ends; runs that are there already are
skipped, and a run that was interrupted continues from its last checkpoint.

    .venv/bin/python benchmarks/cifar_curve.py            # hours: two times six runs of 4,000 steps
    .venv/bin/python benchmarks/cifar_curve.py --table    # the results so far, as Markdown
    .venv/bin/python benchmarks/cifar_curve.py --measure  # steps side by side again, on a machine that is idle now
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from common import machine
from demp import recipes
from demp.experiments.sweep.side_by_side import step_over_dense
from demp.train import TrainConfig

STRENGTHS = {"adam": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2), "sgdm": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)}
"""Peak strengths; 0 stands for dense training."""
KEY = ("optimizer", "strength", "seed", "steps", "width", "precision", "batch_size")


def main() -> None:
    """Run what is missing, or print the table."""
    options = parsed()
    results = Path(options.results)
    if options.table:
        print(table(read(results)))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.measure:
        measure_again(results)
        return
    for wanted in plan(options):
        if any(same(wanted, done) for done in read(results)):
            print(f"{title(wanted)}: done before", flush=True)
            continue
        record = run(wanted, options)
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{title(wanted)}: {brief(record)}", flush=True)
    print(table(read(results)))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="../shared/data/cifar10", help="folder or hub name of CIFAR-10")
    parser.add_argument("--optimizers", nargs="+", default=["adam", "sgdm"], choices=["adam", "adamw", "sgdm", "sgdw"])
    parser.add_argument(
        "--strengths", nargs="+", type=float, help="peak strengths, instead of five per optimizer; 0 is dense"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument(
        "--width", type=float, default=0.25, help="factor on ResNet-18's widths; 0.25 has 16 channels in the stem"
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its own choice")
    parser.add_argument("--results", default="runs/cifar_curve/results.jsonl", help="one JSON line per finished run")
    parser.add_argument("--measure", action="store_true", help="measure the steps of all results again, and stop")
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    return parser.parse_args()


def plan(options: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """What identifies each run, the dense ones first."""
    for seed in options.seeds:
        for optimizer in options.optimizers:
            chosen = options.strengths or STRENGTHS["adam" if optimizer.startswith("adam") else "sgdm"]
            for strength in dict.fromkeys((0.0, *chosen)):
                shared = {name: getattr(options, name) for name in ("steps", "width", "precision", "batch_size")}
                yield {"optimizer": optimizer, "strength": strength, "seed": seed, **shared}


def same(wanted: dict[str, Any], done: dict[str, Any]) -> bool:
    """Is it that run?"""
    return all(wanted.get(name, 128) == done.get(name, 128) for name in KEY)


def title(wanted: dict[str, Any]) -> str:
    """A run in words."""
    what = f"strength {wanted['strength']:g}" if wanted["strength"] else "dense"
    return f"{wanted['optimizer']}, {what}, seed {wanted['seed']}"


def config(wanted: dict[str, Any], data: str, out: Path) -> TrainConfig:
    """The paper's recipe at this size, with this strength."""
    recipe = recipes.get(
        "resnet18-cifar10",
        optimizer=wanted["optimizer"],
        steps=wanted["steps"],
        width=wanted["width"],
        noise_keeps="displacement",
    )
    method = {"options": {"peak_strength": wanted["strength"]}} if wanted["strength"] else {"name": "dense"}
    return recipe.merged(
        {
            "data": {"name": data},
            "method": method,
            "precision": wanted["precision"],
            "batch_size": wanted["batch_size"],
            "device": "cpu",
            "seed": wanted["seed"],
            "eval_every_steps": max(1, wanted["steps"] // 2),
            "out": str(out),
        }
    )


def run(wanted: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """`demp train`, or `demp resume` where it was interrupted, as its own process; says what came out."""
    folder = folder_of(wanted, Path(options.results))
    wanted_config = config(wanted, options.data, folder)
    spent = {}
    if not (folder / "summary.json").exists():
        started = (folder / "config.toml").exists()
        busy = children_seconds()
        demp_command(options.threads, *(["resume", str(folder)] if started else train_arguments(wanted_config, folder)))
        spent = {} if started else {"cpu_seconds": children_seconds() - busy}
    summary = json.loads((folder / "summary.json").read_text())
    now = step_over_dense(wanted_config, folder) if wanted["strength"] else {}
    return {**wanted, **summary, **now, **spent, "machine": machine()}


def folder_of(wanted: dict[str, Any], results: Path) -> Path:
    """The run folder of a run, beside the results."""
    return results.parent / "-".join(str(wanted[key]) for key in KEY)


def measure_again(results: Path) -> None:
    """The step of every network that came out, beside the dense one's, put in place of what the results hold."""
    torch.set_flush_denormal(True)
    records = read(results)
    for record in records:
        if record["strength"]:
            folder = folder_of(record, results)
            record |= step_over_dense(TrainConfig.from_toml(folder / "config.toml"), folder)
            print(f"{title(record)}: step {record['step_over_dense']:.3f} of dense", flush=True)
    results.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def train_arguments(wanted: TrainConfig, folder: Path) -> list[str]:
    """The config as a file beside the run folder, and the command that trains it."""
    file = folder.parent / f"{folder.name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(wanted.to_toml(), encoding="utf-8")
    return ["train", "--config", str(file)]


def demp_command(threads: int, *arguments: str) -> None:
    """The command line of demp, silent on success."""
    threads_set = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    command = [str(Path(sys.executable).with_name("demp")), *arguments]
    done = subprocess.run(command, env=os.environ | threads_set, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")


def children_seconds() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(results: Path) -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def brief(record: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"accuracy {record['eval/top1']:.4f}, neuron sparsity {record['neuron_sparsity']:.3f}, "
        f"weight sparsity {record['weight_sparsity']:.3f}, {record['train_seconds']:.0f} s"
    )


COLUMNS = (
    "optimizer", "strength", "seeds", "test accuracy", "neuron sparsity", "weight sparsity", "FLOPs, exact",
    "FLOPs, paper-style", "training FLOPs", "training time", "processor time", "step late in the run",
    "step, side by side",
)  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """Markdown; FLOPs and times are ratios to the dense run of the same optimizer and seed."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(name, 128) for name in KEY if name != "seed"), []).append(record)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for group in sorted(groups, key=lambda key: (*map(str, key[2:]), key[0], key[1])):
        lines.append(f"| {' | '.join(row(groups[group], records))} |")
    sizes = {(r["optimizer"], r["steps"], r["width"], r["precision"], r.get("batch_size", 128)) for r in records}
    about = [f"{o}: {n} steps of {b} images, width {w:g}, {p}" for o, n, w, p, b in sorted(sizes)]
    machines = {json.dumps(r["machine"], sort_keys=True): r["machine"] for r in records}
    about += ["; ".join(f"{key} {value}" for key, value in found.items()) for found in machines.values()]
    return "\n".join([*lines, "", *about])


def row(group: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[str]:
    """One optimizer and strength, the mean over its seeds."""
    first = group[0]
    pairs = [(record, dense) for record in group if (dense := dense_of(record, records)) is not None]

    def mean(name: str) -> str:
        return f"{100 * statistics.fmean(record[name] for record in group):.1f} %"

    def share(name: str) -> str:
        return f"{statistics.fmean(record[name] / record[f'{name}_dense'] for record in group):.3f}"

    def over_dense(name: str) -> str:
        ratios = [record[name] / dense[name] for record, dense in pairs if name in record and name in dense]
        return f"{statistics.fmean(ratios):.3f}" if ratios else "–"

    accuracies = [100 * record["eval/top1"] for record in group]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    measured = [record["step_over_dense"] for record in group if "step_over_dense" in record]
    return [
        first["optimizer"],
        f"{first['strength']:g}" if first["strength"] else "dense",
        str(len(group)),
        f"{statistics.fmean(accuracies):.2f}{spread} %",
        mean("neuron_sparsity"),
        mean("weight_sparsity"),
        share("flops"),
        share("paper_flops"),
        share("train_flops"),
        over_dense("train_seconds"),
        over_dense("cpu_seconds"),
        over_dense("step_ms_at_end"),
        f"{statistics.fmean(measured):.3f}" if measured else "–",
    ]


def dense_of(record: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The dense run beside ``record``."""
    wanted = {**record, "strength": 0.0}
    return next((other for other in records if same(wanted, other)), None)


if __name__ == "__main__":
    main()
