"""demp beside two other libraries: the same steps, the same data, the same FLOPs that may be left.

    python benchmarks/peers.py --data FOLDER --budget 0.4 --steps 1000 --batch-size 64 --width 0.25 --image-size 16 \
        --seeds 3 --methods dense narrow demp hesso tp-bn-scale tp-group-norm --out runs/peers

``dense``, ``narrow`` and every other method of demp that takes a budget train as `demp train` does. ``hesso`` is the
optimizer of only_train_once 3.0.1 (``pip install --no-deps only-train-once==3.0.1``; it needs numpy and packaging, and
Python 3.11). ``tp-bn-scale`` and ``tp-group-norm`` are BNScalePruner and GroupNormPruner of Torch-Pruning
(``pip install '.[dev]'``). benchmarks/peer_pruning.py and peer_hesso.py say with which settings, and where their
authors give them; ``--option hesso.periods=5`` changes one.

All start from the same weights and take the same images in the same order; the trainer's optimizer, schedule,
precision and test are everyone's. So is the memory layout: contiguous, since only_train_once takes no other. FLOPs and
parameters are counted by `demp.cost` from the network that comes out. The training time is that of the steps with
everything that a method does before, between and after them, without tests. The processor time is measured from the
first step to the last; what a method of demp does before them, and any method after them, counts with its wall time.

Accuracies are of held-out training images (``--validation``) unless ``--test`` asks for the test split; then all
training images are trained on. Each finished run is a line in OUT/results.jsonl and is not repeated.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from common import machine
from demp import methods, recipes
from demp.cli.overrides import parse_settings
from demp.errors import DempError, UsageError
from demp.experiments.compare.plan import knobs, planned
from demp.train import TrainConfig, train
from demp.train.observer import Observer
from demp.train.parts import DENSE
from demp.train.run import Run
from peer_hesso import Hesso, only_train_once
from peer_pruning import TorchPruning, torch_pruning

PEERS = {
    "hesso": Hesso(),
    "tp-bn-scale": TorchPruning(regularizer=1e-5),
    "tp-group-norm": TorchPruning(regularizer=5e-4, pruner="GroupNormPruner"),
}
"""Method -> its documented settings."""
METHODS = (DENSE, "narrow", "demp", *PEERS)
KEY = ("method", "seed", "budget", "options", "config")
"""What identifies a run; the last is a hash of the config that all share, without its seed."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    chosen = parsed(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        compare(chosen)
    except DempError as error:
        sys.exit(str(error))


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="folder or name of the data set")
    parser.add_argument("--budget", type=float, default=0.4, help="share of the dense network's FLOPs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods of demp, and peers")
    parser.add_argument("--option", action="append", default=[], metavar="METHOD.KEY=VALUE", help="(repeatable)")
    parser.add_argument("--recipe", default="resnet18-cifar10", choices=recipes.names())
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "adam", "sgdm", "sgdw"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.25, help="factor on the widths of the recipe's network")
    parser.add_argument("--image-size", type=int, default=0, help="side of the images; 0 keeps theirs")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seeds", type=int, default=1, help="seeds per method: 0, 1, ...")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images held out")
    parser.add_argument("--test", action="store_true", help="test on the test split and hold nothing out")
    parser.add_argument("--out", default="runs/peers")
    return parser.parse_args(arguments)


def compare(chosen: argparse.Namespace) -> None:
    """All runs, seed by seed; those that are in the results already are left alone."""
    if not 0 < chosen.budget <= 1:
        raise UsageError(f"budget is {chosen.budget:g}; give the share of the FLOPs that may be left, in (0, 1]")
    if not (chosen.test or 0 < chosen.validation < 1):
        raise UsageError(f"validation is {chosen.validation:g}; give a share in (0, 1), or --test")
    base, options = base_config(chosen), options_of(chosen)
    results = Path(chosen.out) / "results.jsonl"
    wanted = list(plan(chosen, base, options))
    for key in wanted:
        if find(key, results) is None:
            record = key | run(key, base)
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        print(brief(find(key, results) or {}), flush=True)
    print(table([record for key in wanted if (record := find(key, results))]))


def base_config(chosen: argparse.Namespace) -> TrainConfig:
    """What all runs share; the options of its method are those of demp."""
    recipe = recipes.get(chosen.recipe, optimizer=chosen.optimizer, steps=chosen.steps, width=chosen.width)
    held_out = 0.0 if chosen.test else chosen.validation
    return recipe.merged(
        {
            "data": {"name": chosen.data, "image_size": chosen.image_size, "validation": held_out},
            "batch_size": chosen.batch_size,
            "precision": chosen.precision,
            "device": chosen.device,
            "channels_last": False,
            "eval_every_steps": 0,
            "log_every_steps": chosen.steps,
            "checkpoint_every_steps": chosen.steps,
        }
    )


def options_of(chosen: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Method -> its options; refused before the first run where the method has none of that name."""
    found: dict[str, dict[str, Any]] = {name: {} for name in chosen.methods}
    for key, value in parse_settings(chosen.option).items():
        method, _, option = key.partition(".")
        if method not in found:
            raise UsageError(f"--option {key} is for a method that is not among --methods")
        found[method][option] = value
    for method, options in found.items():
        known = settings_of(method)
        for option in options.keys() - known:
            raise UsageError(f"{method} has no option {option!r}; it has {', '.join(sorted(known)) or 'none'}")
        if method in PEERS:  # its package, missing now rather than hours later
            only_train_once() if method == "hesso" else torch_pruning()
    return found


def settings_of(method: str) -> set[str]:
    """The options of a method or peer, which must take a budget."""
    if method in PEERS:
        return {entry.name for entry in fields(PEERS[method]) if entry.repr}
    if method == DENSE:
        return set()
    if not methods.find(method).takes_budget:
        raise UsageError(f"{method} has no target, so it cannot land on a budget; leave it out")
    return knobs(method)


def plan(chosen: argparse.Namespace, base: TrainConfig, options: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What identifies each run."""
    for seed in range(chosen.seeds):
        for method in dict.fromkeys(chosen.methods):
            budget = None if method == DENSE else chosen.budget
            values = (method, seed, budget, options[method], base.identity())
            yield dict(zip(KEY, values, strict=True))


def find(key: dict[str, Any], results: Path) -> dict[str, Any] | None:
    """The finished run with that key."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    records = map(json.loads, lines)
    return next((record for record in records if all(record[name] == key[name] for name in KEY)), None)


class Guest(Observer):
    """Puts a peer in the pruner's place when a dense run begins; its preparation counts as training time."""

    def __init__(self, settings: Any, budget: float) -> None:
        self.settings, self.budget = settings, budget

    def start(self, run: Run) -> None:
        began = time.perf_counter()
        run.pruner = self.peer = self.settings.attach(run, self.budget * run.dense_cost.flops)
        run.seconds += time.perf_counter() - began


class Clock(Observer):
    """Wall and processor time of training; the first among the observers, so that their start is in it."""

    def start(self, run: Run) -> None:
        self.before, self.began = run.seconds, time.process_time()

    def step(self, run: Run, seconds: float) -> None:
        self.wall, self.steps = run.seconds, time.process_time() - self.began

    def processor_seconds(self, train_seconds: float) -> float:
        """From the first step to the last; the rest of ``train_seconds`` counts as it is."""
        return self.before + self.steps + (train_seconds - self.wall)


def run(key: dict[str, Any], base: TrainConfig) -> dict[str, Any]:
    """Train one; says what came out. FLOPs of a peer are counted from its shapes too, and must agree."""
    method, clock = key["method"], Clock()
    if method in PEERS:
        guest = Guest(replace(PEERS[method], **key["options"]), key["budget"])
        config = planned(base, DENSE, {}, key["seed"]).config
        summary = train(config, observers=[clock, guest]).summary
        if summary["flops"] != guest.peer.flops:
            raise UsageError(f"{method}: demp.cost counts {summary['flops']} FLOPs, the shapes have {guest.peer.flops}")
    else:
        budget = {} if key["budget"] is None else {"budget": f"flops={key['budget']!r}"}
        summary = train(planned(base, method, budget | key["options"], key["seed"]).config, observers=[clock]).summary
    seconds = clock.processor_seconds(summary["train_seconds"])
    return summary | {"method": method, "cpu_seconds": seconds, "machine": machine()}


def brief(record: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"{record['method']}, seed {record['seed']}: accuracy {record['eval/top1']:.4f}, "
        f"{record['flops'] / record['flops_dense']:.4f} of the FLOPs, {record['train_seconds']:.1f} s"
    )


COLUMNS = (
    "method", "accuracy of each seed, %", "mean, %", "FLOPs", "parameters", "training time", "processor time",
)  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """Markdown; sizes are shares of the dense network, times ratios to the dense run of the same seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row(group, groups.get(DENSE, [])))} |" for group in groups.values()]
    machines = {json.dumps(record["machine"]): record["machine"] for record in records}
    about = ["; ".join(f"{key} {value}" for key, value in found.items()) for found in machines.values()]
    return "\n".join([*lines, "", *about])


def row(group: list[dict[str, Any]], dense: list[dict[str, Any]]) -> list[str]:
    """One method over its seeds."""
    beside = {record["seed"]: record for record in dense}

    def share(name: str) -> str:
        return f"{statistics.fmean(record[name] / record[f'{name}_dense'] for record in group):.3f}"

    def over_dense(name: str) -> str:
        ratios = [record[name] / beside[record["seed"]][name] for record in group if record["seed"] in beside]
        return f"{statistics.fmean(ratios):.2f}" if ratios else "–"

    accuracies = [100 * record["eval/top1"] for record in group]
    return [
        group[0]["method"],
        ", ".join(f"{accuracy:.2f}" for accuracy in accuracies),
        f"{statistics.fmean(accuracies):.2f}",
        share("flops"),
        share("parameters"),
        over_dense("train_seconds"),
        over_dense("cpu_seconds"),
    ]


if __name__ == "__main__":
    main()
