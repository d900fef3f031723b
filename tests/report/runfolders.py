"""Run folders and lines of results as the trainer leaves them, written by hand: no torch, all numbers known."""

import json
import math
from itertools import pairwise
from pathlib import Path

LAYERS = {"act": 8, "layer1.act": 16, "layer2.act": 40}
DENSE = {"neurons": 64, "parameters": 10_000, "flops": 1_000_000}
BATCH, EVERY = 32, 5


def lines_of(records):
    """As a file of lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def append(file, text):
    """Add to a file."""
    with file.open("a") as opened:
        opened.write(text)


def share(removed, step, steps):
    """What is left at a step: removal goes evenly over the first half."""
    return 1 - removed * min(1.0, 2 * step / steps)


def metrics(steps, removed, accuracy, shift=0.0):
    """Lines of metrics, a test every ten lines."""
    for step in range(EVERY, steps + 1, EVERY):
        left, phase = share(removed, step, steps), math.sin(math.pi * step / steps)
        line = {"step": step, "train/loss": 2.0 / step, "train/lr": 0.01, "time/seconds": 0.1 * step + shift}
        if removed:
            line |= {"demp/strength": 0.05 * phase, "demp/noise_std": 0.001 * phase, "dead/share": 0.1 * phase}
            line |= {"prune/neurons_alive": 64 * left, "cost/parameters": 10_000 * left, "cost/flops": 1e6 * left}
        yield line | {"time/step_ms": 100.0 * left}
        if step % (10 * EVERY) == 0:
            yield {"step": step, "split": "test", "eval/top1": accuracy * (step / steps) ** 0.1, "eval/loss": 0.5}


def cuts(steps, removed, times=4):
    """Reports of cuts at even steps of the first half."""
    marks = [steps * at // (2 * times) for at in range(times + 1)]
    for before, step in pairwise(marks):
        was, left = share(removed, before, steps), share(removed, step, steps)
        record = {"step": step, "removed": round(64 * (was - left)), "seconds": 0.25, "notes": [], "held": {}}
        layers = {name: {"before": round(w * was), "kept": round(w * left)} for name, w in LAYERS.items()}
        record |= {"layers": layers, "judged": {"batches": 1, "examples": 10, "forwards": 10}}
        for name, dense in DENSE.items():
            record |= {f"{name}_before": dense * was, f"{name}_after": dense * left}
        yield record


def outcome(method, seed, steps, removed, accuracy, **more):
    """A summary."""
    left = 1 - removed
    values = {"method": method, "seed": seed, "model": "mlp", "data": "digits", "steps": steps, "split": "test"}
    for name, dense in DENSE.items():
        values |= {name: dense * left, f"{name}_dense": dense}
    cost = 3.0 * BATCH * steps * DENSE["flops"]
    values |= {"train_flops": cost * (1 - removed / 2), "train_flops_dense": cost, "scoring_flops": 0.0}
    values |= {"eval/top1": accuracy, "eval/loss": 0.5, "neuron_sparsity": removed, "weight_sparsity": removed}
    values |= {"masked_share": 0.0, "train_seconds": 10.0 + 10 * left, "step_ms_at_end": 100.0 * left}
    return values | more


def config(method, seed, steps, **options):
    """config.toml."""
    text = f'steps = {steps}\nbatch_size = {BATCH}\nseed = {seed}\n[model]\nname = "mlp"\n[method]\nname = "{method}"\n'
    return text + "[method.options]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())


def write_run(folder, method="demp", seed=0, steps=200, removed=0.5, accuracy=0.9, ended=True, upto=None, **options):
    """A run folder; ``upto`` is the last step of one that is under way."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    removed = 0.0 if method == "dense" else removed
    upto = steps if upto is None else upto
    (folder / "config.toml").write_text(config(method, seed, steps, **options))
    (folder / "environment.json").write_text(json.dumps({"device_name": "a machine", "threads": 2}))
    known = [line for line in metrics(steps, removed, accuracy) if line["step"] <= upto]
    (folder / "metrics.jsonl").write_text(lines_of(known))
    (folder / "cuts.jsonl").write_text(lines_of(c for c in cuts(steps, removed) if removed and c["step"] <= upto))
    if ended and upto == steps:
        (folder / "summary.json").write_text(json.dumps(outcome(method, seed, steps, removed, accuracy)))
    return folder


def write_sweep(folder, seeds=2, strengths=(0.01, 0.1), steps=200, gone=0.4, names=()):
    """A sweep with its run folders: dense and DemP at two strengths, the stronger smaller and worse.

    Each setting removes ``gone`` more than the one before; ``names`` are other methods for them.
    """
    methods = names or ["demp"] * len(strengths)
    folder = Path(folder)
    (folder / "results").mkdir(parents=True)
    records = []
    for seed in range(seeds):
        for method, setting in [
            ("dense", {}),
            *((m, {"peak_strength": s}) for m, s in zip(methods, strengths, strict=True)),
        ]:
            at = strengths.index(setting["peak_strength"]) + 1 if setting else 0
            removed, accuracy = gone * at, 0.9 - 0.004 * at**2 + 0.002 * seed
            name = f"{method}-{at}-s{seed}"
            write_run(folder / "runs" / name, method, seed, steps, removed, accuracy, **setting)
            done = outcome(method, seed, steps, removed, accuracy, machine="a machine, 2 threads")
            done |= {"step_over_dense": 1 - removed / 2} if setting else {}
            labels = {"method": method, "setting": setting, "seed": seed, "optimizer": "adamw"}
            records.append({"schema": 1, "name": name, "labels": labels, "status": "done", **done})
    (folder / "results" / "here-1.jsonl").write_text(lines_of(records))
    return folder


STUDY = {
    "schema": 1, "id": "fig3", "title": "Structured pruning", "section": "Sec. 4.1", "scale": "cpu", "remark": "",
    "planned": 4, "done": 3, "files": ["fig3.svg", "fig3.md", "fig3.json"],
    "claims": [
        {"sentence": "A holds", "paper": "1.2 points", "ours": "1.0 points", "holds": True, "verdict": "holds"},
        {"sentence": "B does not", "paper": "80 %", "ours": "40 %", "holds": False},
        {"sentence": "C is open", "paper": "1.7", "ours": "", "holds": None},
    ],
    "table": {"headings": ["method", "accuracy"], "rows": [["demp", "90 %"], ["odd"]], "notes": ["One seed."]},
}  # fmt: skip
"""What demp study writes beside the results."""
